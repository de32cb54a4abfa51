"""One run of a handler in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from tasksvc.domain.task import Claim, kept_fraction, kept_message
from tasksvc.handlers.context import Report, SyncContext, deadline
from tasksvc.handlers.results import Encoded, encode


class ThreadRun:
    """A thread that calls a function for a claim. Nothing can end it but the function."""

    def __init__(
        self, function: Callable[..., Any], claim: Claim, report: Report, *, max_result_bytes: int
    ) -> None:
        self._function = function
        self._claim = claim
        self._report = report
        self._max_result_bytes = max_result_bytes
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Encoded | None] = self._loop.create_future()
        self.has_ended = False

    def start(self, on_end: Callable[[], object]) -> None:
        """Starts the thread; `on_end` is called on the loop when it has ended, which may be long
        after the result is no longer wanted.

        Raises RuntimeError when the system has no thread to give.
        """
        self._on_end = on_end
        threading.Thread(
            target=copy_context().run,
            args=(self._work,),
            name=f"task-{self._claim.id}",
            daemon=True,  # or it would keep the process from its end
        ).start()

    async def result(self) -> Encoded | None:
        """What the function returns. Raises what it raises."""
        return await self._result

    def _work(self) -> None:
        claim = self._claim
        context = SyncContext(
            claim.id,
            claim.attempt,
            claim.kind,
            deadline(claim),
            claim.traceparent,
            self._keep_progress,
            self._result.done,
        )
        result: Encoded | None = None
        error: BaseException | None = None
        try:
            returned = self._function(claim.content, context)
            if returned is not None:
                result = Encoded(encode(returned, self._max_result_bytes))
        except StopIteration:  # a future refuses it
            error = RuntimeError("The handler raised StopIteration.")
        except BaseException as raised:
            error = raised
        if os.getpid() != self._process:
            os._exit(1)  # the function has forked, and this is the other one
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end, result, error)

    def _end(self, result: Encoded | None, error: BaseException | None) -> None:
        self.has_ended = True
        self._on_end()
        if self._result.done():  # canceled meanwhile
            return
        if error is None:
            self._result.set_result(result)
        else:
            self._result.set_exception(error)

    def _keep_progress(self, fraction: float, message: str) -> None:
        fraction, message = kept_fraction(fraction), kept_message(message)
        if self._result.done():  # the run is over, and the loop may be gone
            return
        keeping = self._awaited(fraction, message)
        asyncio.run_coroutine_threadsafe(keeping, self._loop).result()

    async def _awaited(self, fraction: float, message: str) -> None:
        await self._report(self._claim, fraction, message)
