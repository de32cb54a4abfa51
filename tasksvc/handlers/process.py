"""The process of one run of a handler, from its start to the end of all that it has started."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import structlog

from tasksvc import logs
from tasksvc.domain.retry import RaisedElsewhere, Verdict
from tasksvc.domain.task import Claim
from tasksvc.handlers import child
from tasksvc.handlers.channel import BrokenMessage, Receiver
from tasksvc.handlers.context import Report
from tasksvc.handlers.kinds import HandlersError
from tasksvc.handlers.limit import TimeLimit
from tasksvc.handlers.results import Encoded

log = structlog.get_logger(__name__)

_SCRIPT = "tasksvc.__main__"
"""What the script `tasksvc` imports. multiprocessing runs the main module again in every process,
which takes half a second if what it imports is not there."""

_START_SECONDS = 120.0
"""For the import of the handler's module."""

_TERMINATE_SECONDS = 2.0
"""Between the signal that asks a process to end and the one that ends it."""

_GROUP_POLL_SECONDS = 0.02

_SOCKET_PATH_BYTES = 100
"""macOS takes 104, Linux 108."""


class ProcessDied(Exception):
    """The process of a handler ended without an answer, or did not start."""


class Processes:
    """Starts processes for handlers, out of a server that has their modules already."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        package = getattr(sys.modules["__main__"], "__package__", None)
        self._modules = [child.__name__, _SCRIPT, *filter(None, [package])]
        # multiprocessing keeps lists of processes that are not thread-safe. In addition, the
        # loop's own executor may be full of what handlers do.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starts-processes")

    def prepare(self, module: str) -> None:
        """The module is imported once, before the first process starts.

        Raises HandlersError when no folder has a path that is short enough for a socket.
        """
        choose_short_folder()
        if module not in self._modules:
            self._modules.append(module)
        self._context.set_forkserver_preload(self._modules)

    async def run(
        self, claim: Claim, where: str, report: Report, *, max_result_bytes: int
    ) -> Encoded | None:
        """What the function that is there (`module:name`) returns for the claim, in a process of
        its own.

        Raises RaisedElsewhere for what it raises, ProcessDied and TimedOut. When it ends, in
        whatever way, the process has ended, with all that it has started in its session.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self._context.Process(
                    target=child.run,
                    args=(theirs, os.getpid(), where, claim, logs.level(), max_result_bytes),
                    name=f"task-{claim.id}",
                )
                try:
                    await _finished(self._in_starter(self._start, process))
                except BaseException:
                    if process.pid is not None:
                        await _finished(_Conversation(process, ours).end())
                    raise
            conversation = _Conversation(process, ours)
            try:
                return await conversation.result(claim, report)
            finally:
                await _finished(conversation.end())

    async def _in_starter(self, work: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._starter, work, *arguments)

    def _start(self, process: ForkServerProcess) -> None:
        try:
            try:
                process.start()
            except (EOFError, OSError):
                # The server has ended, or a module can't be imported a second time. The process
                # itself reports the reason if it can't import it either.
                self._context.set_forkserver_preload([child.__name__])
                process.start()
        except Exception as error:
            name = type(error).__name__
            raise ProcessDied(f"It did not start: {name}: {error}"[:200]) from error


class _Conversation:
    """What is heard of a process that has started."""

    def __init__(self, process: ForkServerProcess, connection: socket.socket) -> None:
        assert process.pid is not None
        self._process = process
        self._pid = process.pid
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._receiver = Receiver(connection, self._until_readable)
        self._readable = asyncio.Event()
        self._dead = asyncio.Event()
        # A process that the handler has forked may keep the connection open.
        self._loop.add_reader(process.sentinel, self._died)

    async def result(self, claim: Claim, report: Report) -> Encoded | None:
        """What the process answers, after all that it reports."""
        try:
            async with asyncio.timeout(_START_SECONDS) as starting:
                with TimeLimit(claim.timeout_seconds) as limit:

                    def begin() -> None:
                        starting.reschedule(None)
                        limit.begin()

                    return await self._answer(claim, report, begin)
        except TimeoutError:
            raise ProcessDied(f"It did not begin within {_START_SECONDS:g} s.") from None
        except EOFError:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TERMINATE_SECONDS):
                    await self._dead.wait()
            raise ProcessDied(self._last_words()) from None
        except BrokenMessage:
            raise ProcessDied("It sent what is no message.") from None

    async def end(self) -> None:
        """Ends the process and its session, and waits for it."""
        try:
            self._signal(signal.SIGTERM)
            if not await self._has_ended(_TERMINATE_SECONDS):
                self._signal(signal.SIGKILL)
                await self._has_ended(_TERMINATE_SECONDS)
        finally:
            if not self._dead.is_set():
                self._loop.remove_reader(self._process.sentinel)
            with suppress(ValueError):  # it can't be killed: the system is in the way
                self._process.close()

    async def _answer(
        self, claim: Claim, report: Report, begin: Callable[[], None]
    ) -> Encoded | None:
        while True:
            match await self._receiver.receive():
                case ("begun",):
                    begin()
                case ("progress", fraction, message):
                    try:
                        await report(claim, fraction, message)
                    except Exception as error:  # it is only said about the run
                        log.warning("Progress refused", action="progress_refused", exc_info=error)
                case ("line", line):
                    with suppress(Exception):
                        logs.write(line)
                case ("result", result):
                    return None if result is None else Encoded(result)
                case ("error", name, message, traceback, verdict):
                    raise RaisedElsewhere(name, message, traceback, Verdict(*verdict))
                case _:
                    raise BrokenMessage

    async def _until_readable(self) -> bool:
        if self._dead.is_set():
            return False
        self._readable.clear()
        self._loop.add_reader(self._connection, self._readable.set)
        try:
            await self._readable.wait()
        finally:
            self._loop.remove_reader(self._connection)
        return not self._dead.is_set()

    def _died(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._dead.set()
        self._readable.set()

    def _last_words(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "It has closed its connection."
        if code < 0:
            with suppress(ValueError):
                return f"{signal.Signals(-code).name} has ended it."
        return f"Its exit code is {code}."

    def _signal(self, number: int) -> bool:
        """Whether anything of it is there to be signaled."""
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            if self._dead.is_set():
                return False
            with suppress(OSError):  # it has not come to its session yet
                os.kill(self._pid, number)
        except OSError:  # not ours any more
            return False
        return True

    async def _has_ended(self, within_seconds: float) -> bool:
        until = time.monotonic() + within_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._dead.wait()
        while self._signal(0) and time.monotonic() < until:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(_GROUP_POLL_SECONDS)
        return time.monotonic() < until


def choose_short_folder() -> None:
    """Lets multiprocessing make its sockets where their paths are short enough. It takes a folder
    of its own below the one for temporary files, and keeps it.

    Raises HandlersError when there is none.
    """
    usual = tempfile.gettempdir()
    for folder in dict.fromkeys([usual, "/tmp", "/var/tmp", "/dev/shm"]):
        path = Path(folder) / "pymp-xxxxxxxx" / "listener-xxxxxxxx"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES and os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            try:
                util.get_temp_dir()  # it stays this one
            finally:
                tempfile.tempdir = usual
            return
    raise HandlersError(
        f"TMPDIR: {usual!r} is too long for the socket that handlers with run_in='process' need."
    )


async def _finished(work: Awaitable[None]) -> None:
    """Waits until the work has ended, however often the waiter is canceled meanwhile."""
    task = asyncio.ensure_future(work)
    canceled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            canceled = error
    if canceled is not None:
        task.exception()  # it has no reader
        raise canceled
    task.result()
