"""Settings, read once from the environment. Times are in seconds, sizes in bytes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environs import Env, EnvValidationError
from marshmallow import ValidationError
from marshmallow.validate import Length, Range

from tasksvc import urls
from tasksvc.urls import MAX_PORT, UrlError

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_MAX_SECONDS = 10 * 366 * 86_400
"""Ten years. What is longer overflows somewhere: in a timer, or in PostgreSQL."""

_PREFIXES = ("TASKSVC_", "TASK_")
"""Of our variables. Others may use the second too: there a name must be more like one of ours."""

_LIKENESS = {"TASKSVC_": 0.6, "TASK_": 0.8}


class SettingsError(Exception):
    """One line that names the variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, with its variable's default. Secrets stay out of the repr."""

    app_env: str
    log_level: str
    log_file_path: Path
    host: str
    port: int
    http: str
    """`on`: all routes; `ops`: health and metrics alone; `off`: no port at all."""

    database_url: str | None = field(repr=False)
    """For libpq. None: the embedded PostgreSQL."""
    database_schema: str | None
    """Where the tables are. None: where the role's search path says."""
    redis_url: str | None = field(repr=False)
    """None: the embedded Redis."""
    redis_prefix: str
    state_dir: Path
    pg_bin: Path | None
    redis_server: Path | None

    handlers: tuple[str, ...]
    """The modules of the user's own handlers."""
    http_allow: tuple[str, ...]
    """The hosts that tasks of the kind `http` may go to."""
    http_allow_private: bool
    threads: int
    processes: int
    workers: int
    concurrency: int
    simulated_seconds: float
    max_attempts: int
    retry_base_seconds: float
    retry_max_seconds: float
    max_result_bytes: int
    retention_seconds: float
    """0 keeps final tasks for ever."""
    key_seconds: float

    lease_seconds: float
    heartbeat_seconds: float
    relay_seconds: float
    lost_margin_seconds: float
    """How much older than what waits in the stream a publication must be to count as lost."""
    drain_seconds: float
    """How long requests are answered after a signal, with readiness off."""
    grace_seconds: float
    statement_timeout_seconds: float
    stream_max_entries: int
    group_size: int
    max_waiting: int

    max_body_bytes: int
    max_batch_bytes: int
    """Of `POST /tasks`."""
    body_timeout_seconds: float
    keepalive_seconds: float
    max_connections: int
    write_timeout_seconds: float
    max_buffer_bytes: int

    warnings: tuple[str, ...] = ()
    """What is set and has no effect, or is probably meant otherwise: a line for each."""

    @classmethod
    def from_env(cls) -> Settings:
        """Raises SettingsError: one line that names the variable and what is wrong."""
        env = _NotingEnv()
        try:
            values = _read(env)
        except EnvValidationError as error:
            raise SettingsError(_one_line(error)) from None
        return cls(**values, warnings=tuple(_warnings(env.names, os.environ)))


class _NotingEnv:
    """Reads variables as environs does, and notes their names."""

    def __init__(self) -> None:
        self._env = Env()
        self.names: set[str] = set()

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        read = getattr(self._env, kind)

        def read_noting(name: str, *args: Any, **options: Any) -> Any:
            self.names.add(name)
            return read(name, *args, **options)

        return read_noting


def _warnings(known: Collection[str], given: Collection[str]) -> Iterator[str]:
    for name in sorted(given):
        prefix = next(filter(name.startswith, _PREFIXES), None)
        if prefix is None or name in known:
            continue
        nearest = difflib.get_close_matches(name, known, 1, _LIKENESS[prefix])
        if nearest:
            yield f"{name} is unknown, and has no effect. Is {nearest[0]} meant?"
        elif prefix == "TASKSVC_":
            yield f"{name} is unknown, and has no effect."
    if "REDIS_URL" not in given and "REDIS_HOST" not in given:
        for name in ("REDIS_PORT", "REDIS_PASSWORD"):
            if name in given:
                yield f"{name} has no effect without REDIS_HOST."


def _read(env: _NotingEnv) -> dict[str, Any]:
    positive = Range(0, _MAX_SECONDS, min_inclusive=False)
    not_negative = Range(0, _MAX_SECONDS)
    max_body_bytes = env.int("TASKSVC_MAX_BODY_BYTES", 262_144, validate=Range(min=1))
    database_url, database_schema = _database_url(env.str("DATABASE_URL", ""))
    lease = env.float("TASKSVC_LEASE_SECONDS", 10.0, validate=positive)
    return {
        # Process and HTTP.
        "app_env": env.str("APP_ENV", "dev"),
        "log_level": env.str("LOG_LEVEL", "debug", validate=_one_of(*LOG_LEVELS)).lower(),
        "log_file_path": Path(env.str("LOG_FILE_PATH", "logs/app.log", validate=Length(min=1))),
        "host": env.str("HOST", "127.0.0.1", validate=_can_be_a_host),
        "port": env.int("PORT", 8000, validate=Range(0, MAX_PORT)),
        "http": env.str("TASKSVC_HTTP", "on", validate=_one_of("on", "ops", "off")).lower(),
        # PostgreSQL and Redis.
        "database_url": database_url,
        "database_schema": database_schema,
        "redis_url": _redis_url(env),
        "redis_prefix": env.str("TASKSVC_REDIS_PREFIX", "tasksvc", validate=Length(min=1)),
        "state_dir": Path(env.str("TASKSVC_STATE_DIR", ".tasksvc", validate=Length(min=1))),
        "pg_bin": _path(env.str("TASKSVC_PG_BIN", "")),
        "redis_server": _path(env.str("TASKSVC_REDIS_SERVER", "")),
        # Tasks.
        "handlers": tuple(filter(None, map(str.strip, env.list("TASKSVC_HANDLERS", [])))),
        "http_allow": tuple(filter(None, map(str.strip, env.list("TASKSVC_HTTP_ALLOW", [])))),
        "http_allow_private": env.bool("TASKSVC_HTTP_ALLOW_PRIVATE", False),
        "threads": env.int("TASKSVC_THREADS", 32, validate=Range(1, 10_000)),
        "processes": env.int("TASKSVC_PROCESSES", os.cpu_count() or 1, validate=Range(1, 1000)),
        "workers": env.int("TASK_CONSUMER_WORKERS", 1, validate=Range(0, 1000)),
        "concurrency": env.int("TASK_CONSUMER_CONCURRENCY", 100, validate=Range(1, 10_000)),
        "simulated_seconds": env.float("TASK_SIMULATED_SECONDS", 3.0, validate=not_negative),
        "max_attempts": env.int("TASK_MAX_ATTEMPTS", 3, validate=Range(1, 1000)),
        "retry_base_seconds": env.float("TASK_RETRY_BASE_SECONDS", 1.0, validate=not_negative),
        "retry_max_seconds": env.float("TASK_RETRY_MAX_SECONDS", 300.0, validate=not_negative),
        "max_result_bytes": env.int("TASK_MAX_RESULT_BYTES", 65_536, validate=Range(min=1)),
        "retention_seconds": env.float("TASK_RETENTION_SECONDS", 0.0, validate=not_negative),
        "key_seconds": env.float("TASK_IDEMPOTENCY_SECONDS", 86_400.0, validate=positive),
        # The duties.
        "lease_seconds": lease,
        "heartbeat_seconds": env.float(
            "TASKSVC_HEARTBEAT_SECONDS",
            lease / 4,
            validate=Range(
                0,
                lease / 2,
                min_inclusive=False,
                error="Must be above 0, and at most half the lease.",
            ),
        ),
        "relay_seconds": env.float("TASKSVC_RELAY_SECONDS", 3.0, validate=positive),
        "lost_margin_seconds": env.float("TASKSVC_LOST_MARGIN_SECONDS", 5.0, validate=not_negative),
        "drain_seconds": env.float("TASKSVC_DRAIN_SECONDS", 0.0, validate=not_negative),
        "grace_seconds": env.float("TASKSVC_GRACE_SECONDS", 20.0, validate=not_negative),
        # Bounds.
        # PostgreSQL counts it in milliseconds, and takes 0 for no limit.
        "statement_timeout_seconds": env.float(
            "TASKSVC_STATEMENT_TIMEOUT_SECONDS", 5.0, validate=Range(0.001, 86_400)
        ),
        "stream_max_entries": env.int("TASKSVC_STREAM_MAX_ENTRIES", 250_000, validate=Range(min=1)),
        "group_size": env.int("TASKSVC_GROUP_SIZE", 500, validate=Range(1, 10_000)),
        "max_waiting": env.int("TASKSVC_MAX_WAITING", 10_000, validate=Range(min=1)),
        "max_body_bytes": max_body_bytes,
        # A thousand tasks of 4 KiB, each with all options.
        "max_batch_bytes": env.int(
            "TASKSVC_MAX_BATCH_BYTES", max(5_242_880, max_body_bytes), validate=Range(min=1)
        ),
        "body_timeout_seconds": env.float("TASKSVC_BODY_TIMEOUT_SECONDS", 5.0, validate=positive),
        "keepalive_seconds": env.float("TASKSVC_KEEPALIVE_SECONDS", 60.0, validate=positive),
        "max_connections": env.int("TASKSVC_MAX_CONNECTIONS", 10_000, validate=Range(min=1)),
        "write_timeout_seconds": env.float(
            "TASKSVC_WRITE_TIMEOUT_SECONDS", 30.0, validate=positive
        ),
        "max_buffer_bytes": env.int("TASKSVC_MAX_BUFFER_BYTES", 134_217_728, validate=Range(min=1)),
    }


def _one_of(*words: str) -> Callable[[str], None]:
    def validate(value: str) -> None:
        if value.lower() not in words:
            raise ValidationError(f"Must be one of: {', '.join(words)}.")

    return validate


def _can_be_a_host(value: str) -> None:
    try:
        value.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValidationError("Must be the name or the address of a host.") from None


def _path(value: str) -> Path | None:
    return Path(value) if value else None


def _database_url(url: str) -> tuple[str | None, str | None]:
    """Returns the URL for libpq and the schema that it names."""
    try:
        return urls.database_url(url) if url else (None, None)
    except UrlError as error:
        raise SettingsError(f"DATABASE_URL: {error}") from None


def _redis_url(env: _NotingEnv) -> str | None:
    url = env.str("REDIS_URL", "")
    host = env.str("REDIS_HOST", "")
    port = env.int("REDIS_PORT", 6379, validate=Range(1, MAX_PORT))
    password = env.str("REDIS_PASSWORD", "")
    name = "REDIS_URL" if url else "REDIS_HOST"
    try:
        if url:
            return urls.redis_url(str(url))
        return urls.redis_url_of(host, port, password) if host else None
    except UrlError as error:
        raise SettingsError(f"{name}: {error}") from None


def _one_line(error: EnvValidationError) -> str:
    # environs: 'Environment variable "PORT" invalid: [...]'
    name = str(error).split('"')[1]
    return f"{name}: {' '.join(map(str, error.error_messages))}"
