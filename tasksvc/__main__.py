"""The command line: `python -m tasksvc`, or `tasksvc`.

A command imports what it alone needs: a container asks for `health` often.
"""

from __future__ import annotations

import dataclasses
import http.client
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click
import structlog

from tasksvc import __version__, logs
from tasksvc.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedRedis
from tasksvc.settings import Settings, SettingsError

log = structlog.get_logger("tasksvc")


@click.group()
@click.version_option(__version__, prog_name="tasksvc")
def main() -> None:
    """A background-task service that cannot lose a task. Settings come from the environment."""


@main.command()
def run() -> None:
    """Serve, consume, or both. Without DATABASE_URL and REDIS_HOST: on private servers."""
    import uvloop

    from tasksvc.domain.errors import MigrationFailed, StoreRefuses
    from tasksvc.handlers.kinds import HandlersError
    from tasksvc.serve import CannotListen, serve

    with _ready() as settings:
        try:
            uvloop.run(serve(settings))
        except (CannotListen, HandlersError, MigrationFailed) as error:
            raise click.ClickException(str(error)) from None
        except StoreRefuses as error:
            raise click.ClickException(f"DATABASE_URL: {error.reason}.") from None


@main.command("migrate")
def migrate_schema() -> None:
    """Bring the schema up to date, and end."""
    import uvloop

    from tasksvc.app import open_database
    from tasksvc.domain.errors import MigrationFailed, StoreRefuses, StoreUnavailable, Unavailable
    from tasksvc.store.migrate import migrate

    with _ready(needs_redis=False) as settings:
        try:
            applied = uvloop.run(migrate(open_database(settings)))
        except StoreRefuses as error:
            raise click.ClickException(f"DATABASE_URL: {error.reason}.") from None
        except StoreUnavailable as error:
            raise click.ClickException(f"{error} Reason: {error.reason}.") from None
        except (MigrationFailed, Unavailable) as error:
            raise click.ClickException(str(error)) from None
    click.echo("\n".join(applied) if applied else "The schema is up to date.")


@main.command()
def health() -> None:
    """Ask the service that runs here for its health; the exit code tells."""
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
def _ready(*, needs_redis: bool = True) -> Iterator[Settings]:
    """Settings with both URLs, logging, and the embedded servers where no other is named."""
    settings = _settings()
    with ExitStack() as stack:
        try:
            stack.enter_context(logs.configured(settings.log_level, settings.log_file_path))
        except OSError as error:
            raise click.ClickException(f"LOG_FILE_PATH: {error.strerror}.") from None
        for warning in settings.warnings:
            log.warning(warning, action="settings")
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
        try:
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
        except EmbeddedError as error:
            raise click.ClickException(str(error)) from None
        yield settings


def _announce(text: str) -> None:
    log.info(text, action="embedded")


if __name__ == "__main__":
    main(prog_name="tasksvc")
