"""How a handler of the user's runs: on the loop, in a thread, or in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from tasksvc.domain.task import Claim
from tasksvc.handlers import Handler
from tasksvc.handlers.channel import MAX_BYTES
from tasksvc.handlers.context import Context, Report, deadline
from tasksvc.handlers.kinds import HandlerSpec
from tasksvc.handlers.limit import TimeLimit
from tasksvc.handlers.process import Processes
from tasksvc.handlers.results import Encoded
from tasksvc.handlers.thread import ThreadRun


class HandlerRunners:
    """Makes handlers of declared functions, and bounds how many run at a time outside the loop."""

    def __init__(
        self,
        report: Report,
        *,
        threads: int,
        processes: int,
        max_result_bytes: int = MAX_BYTES,
    ) -> None:
        self._report = report
        self._threads = asyncio.Semaphore(threads)
        self._places = asyncio.Semaphore(processes)
        self._processes: Processes | None = None
        self._max_result_bytes = max_result_bytes
        self._on_thread_free: list[Callable[[], object]] = []
        self.lingering_threads = 0
        """Threads whose run is over, which go on all the same: a thread can't be stopped."""

    def when_thread_free(self, call: Callable[[], object]) -> None:
        """Calls the function on the loop when a thread ends whose run was over before."""
        self._on_thread_free.append(call)

    def handler_of(self, declared: HandlerSpec) -> Handler:
        """Raises HandlersError when it can't run here."""
        match declared.run_in:
            case "loop":
                return self._on_loop(declared)
            case "thread":
                return self._in_thread(declared)
            case "process":
                return self._in_process(declared)

    def _on_loop(self, declared: HandlerSpec) -> Handler:
        process = os.getpid()

        async def handle(claim: Claim) -> Any:
            report = partial(self._report, claim)
            try:
                return await declared.function(
                    claim.content,
                    Context(
                        *(claim.id, claim.attempt, claim.kind, deadline(claim)),
                        claim.traceparent,
                        report,
                    ),
                )
            finally:
                if os.getpid() != process:
                    os._exit(1)  # the function has forked, and this is the other one

        return handle

    def _in_thread(self, declared: HandlerSpec) -> Handler:
        async def handle(claim: Claim) -> Any:
            with TimeLimit(claim.timeout_seconds) as limit:
                await self._threads.acquire()
                limit.begin()
                return await self._run_in_thread(declared.function, claim)

        return handle

    async def _run_in_thread(self, function: Callable[..., Any], claim: Claim) -> Encoded | None:
        """Runs it in a place that is taken. The place is free when the thread has ended: one that
        ignores its cancellation must not make room for ever more of them."""
        is_over = False

        def free() -> None:
            self._threads.release()
            if is_over:
                self.lingering_threads -= 1
                for call in self._on_thread_free:
                    call()

        try:
            run = ThreadRun(function, claim, self._report, max_result_bytes=self._max_result_bytes)
            run.start(free)
        except BaseException:
            self._threads.release()
            raise
        try:
            return await run.result()
        finally:
            if not run.has_ended:
                is_over = True
                self.lingering_threads += 1

    def _in_process(self, declared: HandlerSpec) -> Handler:
        if self._processes is None:
            self._processes = Processes()
        run = self._processes.run
        path, _, prefix = declared.module.partition(":")
        where = f"{path}:{prefix}{'.' if prefix else ''}{declared.name}"
        self._processes.prepare(path)

        async def handle(claim: Claim) -> Any:
            async with self._places:
                return await run(
                    claim, where, self._report, max_result_bytes=self._max_result_bytes
                )

        return handle
