"""The environment, right and wrong: each mistake is one line with the variable's name in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn
from redis.asyncio import ConnectionPool

from tasksvc.settings import Settings, SettingsError
from tasksvc.stream import task_stream
from tasksvc.testing.process import clean_environment

SECRET = "canary-7f3a"

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The settings of an environment with these variables and no other of ours."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)

    def read(**variables: object) -> Settings:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            return Settings.from_env()

    return read


def refusal(read: Read, **variables: object) -> str:
    with pytest.raises(SettingsError) as raised:
        read(**variables)
    return str(raised.value)


def test_defaults(read: Read) -> None:
    settings = read()

    assert settings.app_env == "dev"
    assert settings.log_level == "debug"
    assert settings.log_file_path == Path("logs/app.log")
    assert settings.host == "127.0.0.1"
    assert settings.port == 8000
    assert settings.http == "on"
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.workers == 1
    assert settings.simulated_seconds == 3
    assert settings.retention_seconds == 0
    assert settings.max_body_bytes == 256 * 1024
    assert settings.max_batch_bytes == 5 * 1024 * 1024
    assert settings.body_timeout_seconds == 5
    assert settings.heartbeat_seconds < settings.lease_seconds / 2


@pytest.mark.parametrize(
    ("variable", "field", "text", "value"),
    [
        ("APP_ENV", "app_env", "test", "test"),
        ("LOG_LEVEL", "log_level", "WARNING", "warning"),
        ("LOG_FILE_PATH", "log_file_path", "/x/y.log", Path("/x/y.log")),
        ("HOST", "host", "::1", "::1"),
        ("PORT", "port", "0", 0),
        ("TASKSVC_HTTP", "http", "Off", "off"),
        ("TASKSVC_REDIS_PREFIX", "redis_prefix", "p", "p"),
        ("TASKSVC_STATE_DIR", "state_dir", "/x", Path("/x")),
        ("TASK_IDEMPOTENCY_SECONDS", "key_seconds", "5", 5),
        ("TASKSVC_HANDLERS", "handlers", "shop.tasks, shop.mail,", ("shop.tasks", "shop.mail")),
        ("TASKSVC_HTTP_ALLOW", "http_allow", "a.example, *.b:8080", ("a.example", "*.b:8080")),
        ("TASKSVC_HTTP_ALLOW_PRIVATE", "http_allow_private", "true", True),
        ("TASKSVC_THREADS", "threads", "5", 5),
        ("TASKSVC_PROCESSES", "processes", "5", 5),
        ("TASK_MAX_RESULT_BYTES", "max_result_bytes", "10", 10),
        ("TASKSVC_PG_BIN", "pg_bin", "/x", Path("/x")),
        ("TASKSVC_REDIS_SERVER", "redis_server", "/x", Path("/x")),
        ("TASK_CONSUMER_WORKERS", "workers", "0", 0),
        ("TASK_CONSUMER_CONCURRENCY", "concurrency", "7", 7),
        ("TASK_SIMULATED_SECONDS", "simulated_seconds", "0.5", 0.5),
        ("TASK_MAX_ATTEMPTS", "max_attempts", "1", 1),
        ("TASK_RETRY_BASE_SECONDS", "retry_base_seconds", "0", 0),
        ("TASK_RETRY_MAX_SECONDS", "retry_max_seconds", "1e3", 1000),
        ("TASK_RETENTION_SECONDS", "retention_seconds", "86400", 86_400),
        ("TASKSVC_LEASE_SECONDS", "lease_seconds", "2.5", 2.5),
        ("TASKSVC_HEARTBEAT_SECONDS", "heartbeat_seconds", "0.1", 0.1),
        ("TASKSVC_RELAY_SECONDS", "relay_seconds", "0.1", 0.1),
        ("TASKSVC_LOST_MARGIN_SECONDS", "lost_margin_seconds", "0", 0),
        ("TASKSVC_GRACE_SECONDS", "grace_seconds", "0", 0),
        ("TASKSVC_STATEMENT_TIMEOUT_SECONDS", "statement_timeout_seconds", "0.5", 0.5),
        ("TASKSVC_STREAM_MAX_ENTRIES", "stream_max_entries", "1", 1),
        ("TASKSVC_GROUP_SIZE", "group_size", "1", 1),
        ("TASKSVC_MAX_WAITING", "max_waiting", "1", 1),
        ("TASKSVC_MAX_BODY_BYTES", "max_body_bytes", "1", 1),
        ("TASKSVC_MAX_BODY_BYTES", "max_batch_bytes", "6000000", 6_000_000),
        ("TASKSVC_MAX_BATCH_BYTES", "max_batch_bytes", "1", 1),
        ("TASKSVC_BODY_TIMEOUT_SECONDS", "body_timeout_seconds", "0.1", 0.1),
        ("TASKSVC_KEEPALIVE_SECONDS", "keepalive_seconds", "0.1", 0.1),
        ("TASKSVC_MAX_CONNECTIONS", "max_connections", "1", 1),
        ("TASKSVC_WRITE_TIMEOUT_SECONDS", "write_timeout_seconds", "0.1", 0.1),
        ("TASKSVC_MAX_BUFFER_BYTES", "max_buffer_bytes", "1", 1),
    ],
)
def test_variable_is_read(read: Read, variable: str, field: str, text: str, value: object) -> None:
    assert getattr(read(**{variable: text}), field) == value


NUMBERS = (
    "TASK_SIMULATED_SECONDS",
    "TASK_RETRY_BASE_SECONDS",
    "TASK_RETRY_MAX_SECONDS",
    "TASK_RETENTION_SECONDS",
    "TASKSVC_LEASE_SECONDS",
    "TASKSVC_HEARTBEAT_SECONDS",
    "TASKSVC_RELAY_SECONDS",
    "TASKSVC_LOST_MARGIN_SECONDS",
    "TASKSVC_GRACE_SECONDS",
    "TASKSVC_STATEMENT_TIMEOUT_SECONDS",
    "TASKSVC_BODY_TIMEOUT_SECONDS",
    "TASKSVC_KEEPALIVE_SECONDS",
    "TASKSVC_WRITE_TIMEOUT_SECONDS",
)

INTEGERS = (
    "PORT",
    "REDIS_PORT",
    "TASK_CONSUMER_WORKERS",
    "TASK_CONSUMER_CONCURRENCY",
    "TASK_MAX_ATTEMPTS",
    "TASKSVC_STREAM_MAX_ENTRIES",
    "TASKSVC_GROUP_SIZE",
    "TASKSVC_MAX_WAITING",
    "TASKSVC_MAX_BODY_BYTES",
    "TASKSVC_MAX_BATCH_BYTES",
    "TASKSVC_MAX_BUFFER_BYTES",
    "TASKSVC_MAX_CONNECTIONS",
)


@pytest.mark.parametrize("variable", [*NUMBERS, *INTEGERS])
@pytest.mark.parametrize(
    "value", ["", " ", "x", "-1", "1,5", "nan", "inf", "1e400", "0x10", '"5"', "1\n2", "5s", "None"]
)
def test_wrong_number_is_refused_by_name(read: Read, variable: str, value: str) -> None:
    line = refusal(read, **{variable: value})

    assert line.startswith(f"{variable}: ")
    assert "\n" not in line


@pytest.mark.parametrize("variable", NUMBERS)
def test_time_beyond_all_bounds_is_refused_by_name(read: Read, variable: str) -> None:
    assert refusal(read, **{variable: 1e9}).startswith(f"{variable}: ")


@pytest.mark.parametrize("variable", INTEGERS)
def test_fraction_of_a_whole_number_is_refused_by_name(read: Read, variable: str) -> None:
    assert refusal(read, **{variable: "1.5"}).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", 65_536),
        ("REDIS_PORT", 0),
        ("REDIS_PORT", 65_536),
        ("TASK_CONSUMER_WORKERS", 1001),
        ("TASK_CONSUMER_CONCURRENCY", 0),
        ("TASK_MAX_ATTEMPTS", 0),
        ("TASKSVC_LEASE_SECONDS", 0),
        ("TASKSVC_RELAY_SECONDS", 0),
        ("TASKSVC_STATEMENT_TIMEOUT_SECONDS", 0),
        ("TASKSVC_STATEMENT_TIMEOUT_SECONDS", 0.0001),
        ("TASKSVC_STREAM_MAX_ENTRIES", 0),
        ("TASKSVC_GROUP_SIZE", 0),
        ("TASKSVC_MAX_WAITING", 0),
        ("TASKSVC_MAX_BODY_BYTES", 0),
        ("TASKSVC_MAX_BATCH_BYTES", 0),
        ("TASKSVC_BODY_TIMEOUT_SECONDS", 0),
        ("TASKSVC_KEEPALIVE_SECONDS", 0),
        ("TASKSVC_MAX_CONNECTIONS", 0),
        ("TASKSVC_WRITE_TIMEOUT_SECONDS", 0),
        ("TASKSVC_MAX_BUFFER_BYTES", 0),
        ("LOG_LEVEL", "loud"),
        ("LOG_LEVEL", ""),
        ("LOG_FILE_PATH", ""),
        ("HOST", "a..b"),
        ("HOST", "a" * 64),
        ("TASKSVC_HTTP", "maybe"),
        ("TASKSVC_STATE_DIR", ""),
        ("TASKSVC_REDIS_PREFIX", ""),
    ],
)
def test_value_out_of_bounds_is_refused_by_name(read: Read, variable: str, value: object) -> None:
    assert refusal(read, **{variable: value}).startswith(f"{variable}: ")


def test_heartbeat_has_to_come_twice_in_a_lease(read: Read) -> None:
    line = refusal(read, TASKSVC_LEASE_SECONDS=2, TASKSVC_HEARTBEAT_SECONDS=1.1)

    assert line == "TASKSVC_HEARTBEAT_SECONDS: Must be above 0, and at most half the lease."


def test_heartbeat_follows_the_lease(read: Read) -> None:
    assert read(TASKSVC_LEASE_SECONDS=0.1).heartbeat_seconds <= 0.05


# DATABASE_URL.


@pytest.mark.parametrize(
    "scheme",
    [
        "postgresql",
        "postgres",
        "postgresql+asyncpg",
        "postgresql+aiopg",
        "postgresql+psycopg2",
        "POSTGRESQL",
    ],
)
@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        ("", {}),
        ("?", {}),
        ("?async_fallback=True", {}),
        ("?ssl=require", {"sslmode": "require"}),
        ("?ssl=true", {"sslmode": "require"}),
        ("?ssl=False", {"sslmode": "disable"}),
        ("?ssl=verify-full&sslmode=disable", {"sslmode": "disable"}),
        ("?prepared_statement_cache_size=0", {}),
        ("?prepared_statement_cache_size=0&sslmode=prefer&&pool_size=5", {"sslmode": "prefer"}),
        ("?application_name=a+b%20c%26d", {"application_name": "a+b c&d"}),
        ("?sslrootcert=/etc/ca.pem", {"sslrootcert": "/etc/ca.pem"}),
    ],
)
def test_database_url_of_any_driver(
    read: Read, scheme: str, tail: str, kept: dict[str, str]
) -> None:
    url = read(DATABASE_URL=f"{scheme}://user:password@db:5433/tasks{tail}").database_url

    assert url is not None
    assert (
        parse_dsn(url)
        == {
            "user": "user",
            "password": "password",
            "host": "db",
            "port": "5433",
            "dbname": "tasks",
        }
        | kept
    )


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        (
            "postgresql://u%40x:p%40%2F%23%3F%3A%25%20@db/t",
            {"user": "u@x", "password": "p@/#?:% ", "host": "db", "dbname": "t"},
        ),
        ("postgresql://u:pä+@db/t", {"user": "u", "password": "pä+", "host": "db", "dbname": "t"}),
        ("postgresql://db", {"host": "db"}),
        ("postgresql://[::1]:5433/t", {"host": "::1", "port": "5433", "dbname": "t"}),
        ("postgresql://%2Frun%2Fpg/t", {"host": "/run/pg", "dbname": "t"}),
        ("postgresql:///t?host=/run/pg", {"host": "/run/pg", "dbname": "t"}),
        (
            "postgresql+asyncpg:///t?host=%2Frun%2Fpg&user=u&port=5433",
            {"host": "/run/pg", "user": "u", "port": "5433", "dbname": "t"},
        ),
        ("postgresql://u@/t?host=/run/pg", {"host": "/run/pg", "user": "u", "dbname": "t"}),
    ],
)
def test_database_url_with_odd_parts(read: Read, url: str, dsn: dict[str, str]) -> None:
    cleaned = read(DATABASE_URL=url).database_url

    assert cleaned is not None
    assert parse_dsn(cleaned) == dsn


@pytest.mark.parametrize(
    "url",
    [
        "db",
        "db:5432/tasks",
        "//db/tasks",
        "mysql://db/tasks",
        "postgresql",
        "postgresql:",
        "postgresql:/tasks",
        "postgresql+pg8000://db/tasks",
        "jdbc:postgresql://db/tasks",
        f"postgresql://u:{SECRET}%@db/t",
        f"postgresql://u:{SECRET}#x@db/t",
        f"postgresql://u:{SECRET}?x@db/t",
        f"postgresql://u:x?{SECRET}@db/t",
        f"postgresql://u:x?{SECRET}=@db/t",
        f"postgresql://u:{SECRET}/x@db/t",
        f"postgresql://u:{SECRET}@db:x/t",
        f"postgresql://u:{SECRET}@db:0/t",
        f"postgresql://u:{SECRET}@db:65536/t",
        f"postgresql://u:{SECRET}@[::1/t",
        f"postgresql://u:{SECRET}@db/t?no_such=1",
        f"postgresql://u:{SECRET}@db/t?sslmode=maybe",
        f"postgresql://u:{SECRET}@db/t?ssl=maybe",
        f"postgresql://u:{SECRET}@db/t?port=x",
        f"postgresql://u:{SECRET}@db1,db2/t",
        f"postgresql://u:{SECRET}@db/t?host=db1,db2",
        f"postgresql://u:{SECRET}@db/t?=1",
        f"postgresql://u:{SECRET}@db/t?%00=1",
    ],
)
def test_wrong_database_url_is_refused_by_name(read: Read, url: str) -> None:
    line = refusal(read, DATABASE_URL=url)

    assert line.startswith("DATABASE_URL: ")
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("pgbouncer=true", "pgbouncer=true means a pooler in transaction mode"),
        ("pgbouncer=1", "pgbouncer=true means a pooler in transaction mode"),
        ("schema=", "schema must be the name of a schema"),
        (f"schema={'x' * 64}", "schema must be the name of a schema"),
        ("client_encoding=latin1", "client_encoding must be UTF8"),
        ("replication=database", "replication can't be used"),
        ("target_session_attrs=standby", "target_session_attrs must be one of: any"),
        ("connect_timeout=soon", "connect_timeout must be a number"),
        ("connect_timeout=-1", "connect_timeout must be a number"),
    ],
)
def test_parameter_that_cannot_be_honoured_is_refused(read: Read, query: str, says: str) -> None:
    assert says in refusal(read, DATABASE_URL=f"postgresql://u:{SECRET}@db/t?{query}")


def test_parameters_that_are_honoured(read: Read) -> None:
    settings = read(
        DATABASE_URL="postgresql://db/t?schema=my%20tasks&pgbouncer=false&connect_timeout=10"
        "&client_encoding=utf8&target_session_attrs=read-write"
    )

    assert settings.database_schema == "my tasks"
    assert parse_dsn(str(settings.database_url)) == {
        "host": "db",
        "dbname": "t",
        "connect_timeout": "10",
        "client_encoding": "utf8",
        "target_session_attrs": "read-write",
    }


def test_no_schema_means_that_of_the_role(read: Read) -> None:
    assert read(DATABASE_URL="postgresql://db/t").database_schema is None


def test_empty_database_url_means_the_embedded_one(read: Read) -> None:
    assert read(DATABASE_URL="").database_url is None


# REDIS_*.


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, None),
        ({"REDIS_HOST": ""}, None),
        ({"REDIS_PORT": "6380", "REDIS_PASSWORD": "x"}, None),
        ({"REDIS_HOST": "redis"}, "redis://redis:6379/0"),
        ({"REDIS_HOST": "10.0.0.1", "REDIS_PORT": "6380"}, "redis://10.0.0.1:6380/0"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_URL": "redis://x:1/2", "REDIS_HOST": "y", "REDIS_PORT": "3"}, "redis://x:1/2"),
        ({"REDIS_URL": "rediss://u:p@x/1"}, "rediss://u:p@x/1"),
        ({"REDIS_URL": "unix:///run/redis.sock?db=1"}, "unix:///run/redis.sock?db=1"),
    ],
)
def test_redis(read: Read, variables: dict[str, str], url: str | None) -> None:
    assert read(**variables).redis_url == url


@pytest.mark.parametrize("password", ["simple", "p@:/#? %&+", "ä", "[", "'\""])
def test_redis_password_arrives_as_it_is(read: Read, password: str) -> None:
    url = read(REDIS_HOST="redis", REDIS_PASSWORD=password).redis_url

    assert url is not None
    assert ConnectionPool.from_url(url).connection_kwargs["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        "redis",
        "redis:6379",
        "http://redis",
        f"redis://:{SECRET}@redis:x/0",
        f"redis://:{SECRET}@redis:65536/0",
        f"redis://:{SECRET}@[::1",
        f"redis://:{SECRET}@redis?socket_timeout=soon",
        f"redis://:{SECRET}@redis?no_such=1",
        f"redis://:{SECRET}@redis?protocol=9",
        f"redis://:{SECRET}@a..b",
        f"rediss://:{SECRET}@redis?ssl_cert_reqs=maybe",
        f"redis://:{SECRET}#@redis:6379/0",
        f"redis://:{SECRET}@redis/notanumber",
        f"redis://:{SECRET}@redis/1/2",
        f"redis://:{SECRET}@redis/-1",
        f"redis://:{SECRET}@redis/0?protocol=3",
    ],
)
def test_wrong_redis_url_is_refused_by_name(read: Read, url: str) -> None:
    line = refusal(read, REDIS_URL=url)

    assert line.startswith("REDIS_URL: ")
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "host", ["redis:6379", "redis://redis", "a..b", "a b", "a/b", "a@b", "a#b", "a\nb"]
)
def test_wrong_redis_host_is_refused_by_name(read: Read, host: str) -> None:
    line = refusal(read, REDIS_HOST=host, REDIS_PASSWORD=SECRET)

    assert line == "REDIS_HOST: Must be the name or the address of a host."


def test_redis_url_does_not_say_how_redis_is_talked_to(read: Read) -> None:
    url = read(
        REDIS_URL="redis://redis/1?decode_responses=no&socket_timeout=0.1&max_connections=1"
        "&client_name=x&retry_on_timeout=yes&encoding=latin1&health_check_interval=30"
    ).redis_url
    assert url is not None
    options = task_stream._client(url, 5.0, 7, "ours").connection_pool.connection_kwargs

    assert options["db"] == 1
    assert options["health_check_interval"] == 30
    assert options["decode_responses"] is True
    assert options["socket_timeout"] == 5.0
    assert options["client_name"] == "ours"
    assert options["retry_on_timeout"] is False
    assert options["encoding"] == "utf-8"
    assert options["protocol"] == 2


# What has no effect.


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        (
            "TASKSVC_WORKERS",
            "TASKSVC_WORKERS is unknown, and has no effect. Is TASKSVC_THREADS meant?",
        ),
        (
            "TASKSVC_HANDLER",
            "TASKSVC_HANDLER is unknown, and has no effect. Is TASKSVC_HANDLERS meant?",
        ),
        (
            "TASK_MAX_ATTEMPT",
            "TASK_MAX_ATTEMPT is unknown, and has no effect. Is TASK_MAX_ATTEMPTS meant?",
        ),
        ("TASKSVC_QQQQQQ_JJJJJJ", "TASKSVC_QQQQQQ_JJJJJJ is unknown, and has no effect."),
        ("REDIS_PASSWORD", "REDIS_PASSWORD has no effect without REDIS_HOST."),
        ("TASK_OWNER_NAME", None),
        ("TASK_MAX_ATTEMPTS", None),
        ("TASKS", None),
    ],
)
def test_variable_without_effect_is_said(read: Read, variable: str, warning: str | None) -> None:
    warnings = read(**{variable: "7"}).warnings

    assert warnings == (() if warning is None else (warning,))


# Secrets.


def test_secrets_stay_out_of_the_repr(read: Read) -> None:
    settings = read(
        DATABASE_URL=f"postgresql://u:{SECRET}@db/t",
        REDIS_HOST="redis",
        REDIS_PASSWORD=SECRET,
    )

    assert SECRET in str(settings.database_url)
    assert SECRET in str(settings.redis_url)
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
