"""How a handler of the user's runs: on the loop, in a thread, or in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tasksvc import logs
from tasksvc.domain.retry import RaisedElsewhere, Verdict
from tasksvc.domain.task import Claim
from tasksvc.handlers import Handler, child
from tasksvc.handlers.context import Context, Report, SyncContext, deadline
from tasksvc.handlers.kinds import Declared
from tasksvc.handlers.limit import TimeLimit

_TERMINATE_SECONDS = 2.0


class ProcessDied(Exception):
    """The process of a handler ended without an answer."""


class Runners:
    """Makes handlers of declared functions, and bounds how many run at a time beside the loop."""

    def __init__(self, report: Report, *, threads: int, processes: int) -> None:
        self._report = report
        self._threads = asyncio.Semaphore(threads)
        self._processes = asyncio.Semaphore(processes)

    def handler_of(self, declared: Declared) -> Handler:
        match declared.run_in:
            case "loop":
                return self._on_loop(declared)
            case "thread":
                return self._in_thread(declared)
            case "process":
                return self._in_process(declared)

    def _on_loop(self, declared: Declared) -> Handler:
        async def handle(claim: Claim) -> Any:
            report = partial(self._report, claim)
            return await declared.function(
                claim.content,
                Context(claim.id, claim.attempt, claim.kind, deadline(claim), report),
            )

        return handle

    def _in_thread(self, declared: Declared) -> Handler:
        async def handle(claim: Claim) -> Any:
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[Any] = loop.create_future()

            def report(fraction: float, message: str) -> None:
                if ended.done():  # nobody asks any more, and the loop may be gone
                    return
                keeping = self._report(claim, fraction, message)
                asyncio.run_coroutine_threadsafe(_awaited(keeping), loop).result()

            def work() -> None:
                context = SyncContext(
                    claim.id, claim.attempt, claim.kind, deadline(claim), report, ended.done
                )
                end = _call(declared.function, claim.content, context, ended)
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(self._threads.release)
                    loop.call_soon_threadsafe(end)

            # Its place is free when the thread has ended, which may be long after the task has: a
            # thread that ignores its cancellation must not make room for ever more of them. It is a
            # daemon, or it would keep the process from its end. Its lines name the task: they have
            # the context of this.
            with TimeLimit(claim.timeout_seconds) as limit:
                await self._threads.acquire()
                limit.begin()
                threading.Thread(
                    target=copy_context().run,
                    args=(work,),
                    name=f"task-{claim.id}",
                    daemon=True,
                ).start()
                return await ended

        return handle

    def _in_process(self, declared: Declared) -> Handler:
        function = declared.function
        where = (function.__module__, function.__qualname__)
        forkserver = multiprocessing.get_context("forkserver")
        forkserver.set_forkserver_preload([child.__name__, function.__module__])

        async def handle(claim: Claim) -> Any:
            async with self._processes:
                ours, theirs = forkserver.Pipe()
                process = forkserver.Process(
                    target=child.run, args=(theirs, where, claim, logs.level()), daemon=True
                )
                try:
                    await _finished(asyncio.to_thread(process.start))
                    theirs.close()
                    with TimeLimit(claim.timeout_seconds) as limit:
                        return await self._converse(claim, ours, limit.begin)
                except EOFError:
                    await asyncio.to_thread(process.join, _TERMINATE_SECONDS)
                    raise ProcessDied(f"Its exit code is {process.exitcode}.") from None
                finally:
                    ours.close()
                    if process.pid is not None:
                        await _finished(asyncio.to_thread(_end, process))

        return handle

    async def _converse(self, claim: Claim, ours: Connection, begin: Callable[[], None]) -> Any:
        """What the process answers, after all that it reports."""
        while True:
            await _readable(ours)
            match ours.recv():
                case ("begun",):
                    begin()
                case ("progress", fraction, message):
                    await self._report(claim, fraction, message)
                case ("line", line):
                    logs.write(line)
                case ("result", result):
                    return result
                case ("error", name, message, traceback, verdict):
                    raise RaisedElsewhere(name, message, traceback, Verdict(*verdict))


def _call(
    function: Callable[..., Any],
    content: str,
    context: SyncContext,
    ended: asyncio.Future[Any],
) -> Callable[[], None]:
    """Calls the function here; what is returned tells the loop, when it is called there."""
    try:
        result, error = function(content, context), None
    except BaseException as raised:
        result, error = None, raised

    def end() -> None:
        if ended.done():  # canceled meanwhile
            return
        if error is None:
            ended.set_result(result)
        elif isinstance(error, StopIteration):  # a future refuses it
            ended.set_exception(RuntimeError("The handler raised StopIteration."))
        else:
            ended.set_exception(error)

    return end


def _end(process: Any) -> None:
    process.terminate()
    process.join(_TERMINATE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _finished(work: Any) -> Any:
    """Waits until the work has ended, also when the waiter is canceled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _readable(connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())
