"""The command line: `python -m tasksvc`, or `tasksvc`."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click
import structlog
import uvloop
from aiohttp import web

from tasksvc import __version__, logs
from tasksvc.app import POOL, create_app, open_database
from tasksvc.domain.errors import Unavailable
from tasksvc.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedRedis
from tasksvc.handlers import Handler
from tasksvc.settings import Settings, SettingsError
from tasksvc.store.migrate import migrate as migrate_database
from tasksvc.web.keys import HEALTH
from tasksvc.web.server import Runner

log = structlog.get_logger("tasksvc")


@click.group()
@click.version_option(__version__, prog_name="tasksvc")
def main() -> None:
    """A background-task service that cannot lose a task. Settings come from the environment."""


@main.command()
def run() -> None:
    """Serve, consume, or both. Without DATABASE_URL and REDIS_HOST: on private servers."""
    with _ready() as settings:
        uvloop.run(serve(settings))


@main.command()
def migrate() -> None:
    """Bring the schema up to date, and end."""
    with _ready(needs_redis=False) as settings:
        applied = uvloop.run(_migrate(settings))
    click.echo("\n".join(applied) if applied else "The schema is up to date.")


@main.command()
def health() -> None:
    """Ask the service that runs here for its health; the exit code tells."""
    settings = _settings()
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            click.echo(answer.read().decode())
    except OSError as error:
        raise click.ClickException(str(error)) from None


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


async def _migrate(settings: Settings) -> list[str]:
    try:
        return await migrate_database(open_database(settings))
    except Unavailable as error:
        raise click.ClickException(str(error)) from None


async def serve(settings: Settings, handler: Handler | None = None) -> None:
    """From start to stop. SIGTERM or SIGINT stops with grace, a second cuts the grace short, a
    third ends the process where it stands."""
    app = create_app(settings, handler)
    stopping = _on_signals(app)
    runner = Runner(app, keepalive_seconds=settings.keepalive_seconds)
    try:
        await _unless(stopping, runner.setup())
        if not stopping.is_set() and settings.http != "off":
            await _listen(runner, settings)
        if not stopping.is_set():
            log.info("Ready", action="ready", workers=settings.workers, version=__version__)
        await stopping.wait()
        log.info("Stopping", action="stopping", grace_seconds=settings.grace_seconds)
        # Health tells it, and reads are answered, while what runs may end.
        app[HEALTH].is_stopping = True
        await app[POOL].stop()
    finally:
        await runner.cleanup()
    log.info("Stopped", action="stopped")


def _on_signals(app: web.Application) -> asyncio.Event:
    stopping = asyncio.Event()
    count = itertools.count(1)

    def stop() -> None:
        match next(count):
            case 1:
                stopping.set()
            case 2:
                app[POOL].hurry()
            case _:
                os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopping


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, or gives it up when it is time to stop."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in (working, waiting):
        task.cancel()
    results = await asyncio.gather(working, waiting, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _listen(runner: Runner, settings: Settings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    except OSError as error:
        raise click.ClickException(
            f"HOST, PORT: can't listen on {settings.host}:{settings.port}: {error.strerror}."
        ) from None
    for host, port, *_ in runner.addresses:
        shown = f"[{host}]" if ":" in host else host
        log.info(f"Serving on http://{shown}:{port}", action="serving")


if __name__ == "__main__":
    main(prog_name="tasksvc")
