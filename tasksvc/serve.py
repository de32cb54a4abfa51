"""The life of the process: from its start, over its signals, to its end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import web

from tasksvc import __version__
from tasksvc.app import POOL, create_app
from tasksvc.handlers import Handler
from tasksvc.settings import Settings
from tasksvc.web.keys import HEALTH
from tasksvc.web.server import Runner

log = structlog.get_logger("tasksvc")


_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""

_LARGE_BYTES = 65_536


class CannotListen(Exception):
    """One line that names the variables."""


async def serve(settings: Settings, handler: Handler | None = None) -> None:
    """From start to stop. SIGTERM or SIGINT stops with grace, a second cuts the grace short, a
    third ends the process where it stands.

    Raises CannotListen.
    """
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    app = create_app(settings, handler)
    stopping = _on_signals(app)
    runner = Runner(app, keepalive_seconds=settings.keepalive_seconds)
    try:
        await _unless(stopping, runner.setup())
        if not stopping.is_set() and settings.http != "off":
            await _listen(runner, settings)
        if not stopping.is_set():
            _calm_the_collector()
            _give_memory_back()
            log.info("Ready", action="ready", workers=settings.workers, version=__version__)
        await stopping.wait()
        log.info("Stopping", action="stopping", grace_seconds=settings.grace_seconds)
        # Health tells it, and reads are answered, while what runs may end.
        app[HEALTH].is_stopping = True
        await app[POOL].stop()
    finally:
        await runner.cleanup()
    log.info("Stopped", action="stopped")


def _calm_the_collector() -> None:
    """Reference counts free nearly all there is. To look for cycles after every 700 new objects
    costs a twentieth of the time."""
    gc.freeze()  # what is there now stays
    gc.set_threshold(20_000, 10, 10)


def _give_memory_back() -> None:
    """Large blocks go back to the system as soon as they are free. From glibc's heap they would
    not: 256 creates of 100 kB at a time left it with 340 MB, and now take 130."""
    with suppress(OSError, AttributeError):  # another C library has no such knob
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody was there to catch. Of a driver's error only the kind: its text may hold SQL."""
    error = context.get("exception")
    is_drivers = type(error).__module__.startswith(("psycopg2", "redis"))
    log.warning(
        "Nobody caught an error",
        action="uncaught",
        error=type(error).__name__,
        exc_info=None if is_drivers else error,
    )


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
        raise CannotListen(
            f"HOST, PORT: can't listen on {settings.host}:{settings.port}: {error.strerror}."
        ) from None
    for host, port, *_ in runner.addresses:
        shown = f"[{host}]" if ":" in host else host
        log.info(f"Serving on http://{shown}:{port}", action="serving")
