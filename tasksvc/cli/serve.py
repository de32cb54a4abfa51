"""The life of the service in its event loop, from the start to the stop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog
import uvloop
from aiohttp import web

from tasksvc import __version__
from tasksvc.app import BACKGROUND, create_app
from tasksvc.cli.ending import Ending
from tasksvc.handlers import Handler
from tasksvc.handlers.kinds import HandlerSpec
from tasksvc.settings import Settings
from tasksvc.web.app_keys import HEALTH
from tasksvc.web.server import Runner

log = structlog.get_logger("tasksvc")


_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""

_LARGE_BYTES = 65_536


class CannotListen(Exception):
    """One line that names the variables."""


def serve(
    settings: Settings,
    ending: Ending,
    declared: Mapping[str, HandlerSpec],
    handler: Handler | None = None,
) -> None:
    """Runs the service from its start until a signal ends it.

    The first signal stops with grace, a second one cuts the grace short. `settings` has both URLs,
    `declared` is what `load_handlers` found, `handler` does the tasks without a kind. What is left
    in the event loop then is not awaited: the caller ends the process.

    Raises CannotListen and MigrationFailed.
    """
    loop = uvloop.new_event_loop()
    serving = loop.create_task(_serve(settings, ending, create_app(settings, handler, declared)))
    while not serving.done():
        try:
            loop.run_until_complete(serving)
        except RuntimeError:  # of the loop itself: it was stopped before its end
            if serving.done():
                raise
            log.warning("A handler ended the event loop, which runs on", action="loop_runs_on")


async def _serve(settings: Settings, ending: Ending, app: web.Application) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    stop = _Stop(app, settings)
    ending.tell(lambda number: loop.call_soon_threadsafe(stop.take_signal, number))
    runner = Runner(app, keepalive_seconds=settings.keepalive_seconds)
    try:
        await _unless(stop.is_asked, runner.setup())
        urls = []
        if not stop.is_asked.is_set() and settings.http != "off":
            urls = await _listen(runner, settings)
        if not stop.is_asked.is_set():
            _calm_the_collector()
            _give_memory_back()
            # The last line of the start, and the only one with the URL.
            log.info(
                "Ready",
                action="ready",
                **({"on": " and ".join(urls)} if urls else {}),
                workers=settings.workers,
                version=__version__,
            )
        await stop.wait()
        if HEALTH in app:  # otherwise the signal came before the start
            await stop.drain()
            # Reads and health are answered while what runs may end.
            app[HEALTH].is_stopping = True
            await app[BACKGROUND].stop()
    finally:
        await runner.cleanup()
    ending.is_in_order()
    log.info("Stopped", action="stopped")


class _Stop:
    """What the signals ask for."""

    def __init__(self, app: web.Application, settings: Settings) -> None:
        self.is_asked = asyncio.Event()
        self._is_hurried = asyncio.Event()
        self._app = app
        self._settings = settings

    def take_signal(self, number: int) -> None:
        """The second one cuts short whatever is waited for."""
        if number == 1:
            self._say()
            self.is_asked.set()
        else:
            self._is_hurried.set()
            if BACKGROUND in self._app:
                self._app[BACKGROUND].hurry()

    async def wait(self) -> None:
        """Waits for the first signal. Only a signal stops the service: a handler may cancel all the
        tasks of the event loop, and this one with them."""
        while not self.is_asked.is_set():
            try:
                await self.is_asked.wait()
            except asyncio.CancelledError:
                log.warning("A handler has canceled the service, which goes on", action="goes_on")

    async def drain(self) -> None:
        """Serves on with readiness off, until a balancer sends nothing more."""
        self._app[HEALTH].is_draining = True
        if self._settings.drain_seconds and not self._is_hurried.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_seconds):
                    await self._is_hurried.wait()

    def _say(self) -> None:
        settings = self._settings
        count = self._app[BACKGROUND].running_count if BACKGROUND in self._app else 0
        waits = []
        if settings.drain_seconds:
            waits.append(f"serves on for {settings.drain_seconds:g} s")
        if count:
            tasks = "1 running task" if count == 1 else f"{count} running tasks"
            waits.append(f"waits up to {settings.grace_seconds:g} s for {tasks}")
        hint = "; a second signal or Ctrl-C cuts that short, a third ends the process at once"
        log.info(
            f"Stopping: {', then '.join(waits)}{hint}" if waits else "Stopping",
            action="stopping",
            running=count,
            drain_seconds=settings.drain_seconds,
            grace_seconds=settings.grace_seconds,
        )


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
    """Logs an error that no code caught. Of a driver's error it logs the type alone: the text may
    hold SQL."""
    error = context.get("exception")
    is_drivers = type(error).__module__.startswith(("psycopg2", "redis"))
    log.warning(
        "Unhandled exception in the event loop",
        action="uncaught",
        error=type(error).__name__,
        exc_info=None if is_drivers else error,
    )


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


async def _listen(runner: Runner, settings: Settings) -> list[str]:
    """The URLs that it listens on."""
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    except OSError as error:
        raise CannotListen(
            f"HOST, PORT: can't listen on {settings.host}:{settings.port}: {error.strerror}."
        ) from None
    return [
        f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        for host, port, *_ in runner.addresses
    ]
