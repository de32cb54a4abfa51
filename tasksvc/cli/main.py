"""The command line: `python -m tasksvc`, or `tasksvc`.

A command imports what it alone needs: a container asks for `health` often.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click
import structlog

from tasksvc import __version__, logs
from tasksvc.cli.ending import FAILED, Ending, StopRequested
from tasksvc.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedRedis
from tasksvc.settings import Settings, SettingsError

log = structlog.get_logger("tasksvc")

_STOP_SECONDS = 5.0
"""For all of the stop but the grace period: then the process is ended hard."""


@click.group()
@click.version_option(__version__, prog_name="tasksvc")
def main() -> None:
    """A background-task service that cannot lose a task. Settings come from the environment."""
    _open_standard_streams()


@main.command()
def run() -> None:
    """Serve, consume, or both. Without DATABASE_URL and REDIS_HOST: on private servers."""
    settings = _settings()
    with Ending(settings.drain_seconds + settings.grace_seconds + _STOP_SECONDS) as ending:
        with _logging(settings):
            code = _run(settings, ending)
        ending.end(code)


def _run(settings: Settings, ending: Ending) -> int:
    """The exit code. Handlers' modules may have started threads: from here on errors are not
    raised, since the interpreter would wait for the threads."""
    from tasksvc.app import load_handlers
    from tasksvc.cli.serve import CannotListen, serve
    from tasksvc.domain.errors import MigrationFailed, StoreRefuses
    from tasksvc.handlers.kinds import HandlersError

    try:
        declared = load_handlers(settings)
        with _servers(settings) as settings:
            serve(settings, ending, declared)
    except StopRequested:
        log.info("Stopped", action="stopped")
    except (CannotListen, EmbeddedError, HandlersError, MigrationFailed) as error:
        _show(click.ClickException(str(error)))
        return FAILED
    except StoreRefuses as error:
        _show(click.ClickException(f"DATABASE_URL: {error.reason}."))
        return FAILED
    except Exception:
        log.critical("Unexpected", action="failed", exc_info=True)
        return FAILED
    return 0


def _show(error: click.ClickException) -> None:
    logs.flush()  # it is the last line
    try:
        error.show()
    except (OSError, ValueError):  # a module has closed the stream
        log.critical(error.message, action="failed")


@main.command("migrate")
def migrate_schema() -> None:
    """Bring the schema up to date, and end."""
    import uvloop

    from tasksvc.app import open_database
    from tasksvc.domain.errors import MigrationFailed, StoreRefuses, StoreUnavailable, Unavailable
    from tasksvc.store.migrate import migrate

    settings = _settings()
    with _logging(settings):
        try:
            with _servers(settings, needs_redis=False) as settings:
                applied = uvloop.run(migrate(open_database(settings)))
        except StoreRefuses as error:
            raise click.ClickException(f"DATABASE_URL: {error.reason}.") from None
        except StoreUnavailable as error:
            raise click.ClickException(f"{error} Reason: {error.reason}.") from None
        except (EmbeddedError, MigrationFailed, Unavailable) as error:
            raise click.ClickException(str(error)) from None
    click.echo("\n".join(applied) if applied else "The schema is up to date.")


@main.command()
def health() -> None:
    """Ask the service that runs here for its health; and report it by the exit code."""
    settings = _settings()
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    # Not urllib.request: it would go through a proxy that the environment names.
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        name = type(error).__name__
        raise click.ClickException(f"No health from {host}:{settings.port}: {name}.") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise click.ClickException(body)
    click.echo(body)


def _settings() -> Settings:
    try:
        return Settings.from_env()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _logging(settings: Settings) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(logs.configured(settings.log_level, settings.log_file_path))
        except OSError as error:
            raise click.ClickException(f"LOG_FILE_PATH: {error.strerror}.") from None
        for warning in settings.warnings:
            log.warning(warning, action="settings")
        yield


@contextmanager
def _servers(settings: Settings, *, needs_redis: bool = True) -> Iterator[Settings]:
    """Settings with both URLs: the embedded servers run where no other is named.

    Raises EmbeddedError.
    """
    with ExitStack() as stack:
        if needs_redis and (settings.database_url is None) != (settings.redis_url is None):
            # Right on a laptop; elsewhere it is a variable that was forgotten.
            missing, server = (
                ("DATABASE_URL", "PostgreSQL")
                if settings.database_url is None
                else ("REDIS_HOST", "Redis")
            )
            log.warning(
                f"{missing} is not set: starts a private {server}, which no other process shares",
                action="private_server",
            )
        if settings.database_url is None:
            postgres = EmbeddedPostgres(
                settings.state_dir, bin_dir=settings.pg_bin, announce=_announce
            )
            stack.enter_context(postgres)
            settings = dataclasses.replace(settings, database_url=postgres.url)
        if settings.redis_url is None and needs_redis:
            redis = EmbeddedRedis(
                settings.state_dir, server=settings.redis_server, announce=_announce
            )
            stack.enter_context(redis)
            settings = dataclasses.replace(settings, redis_url=redis.url)
        yield settings


def _open_standard_streams() -> None:
    """Some daemons are started with closed streams. Without this their numbers would go to files
    and connections, and whatever writes to a standard stream would write into those."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest free number. Children have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(os.dup(1), "w")
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")


def _announce(text: str) -> None:
    log.info(text, action="embedded")
