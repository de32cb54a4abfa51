"""The guard of the event loop: a thread that notices when a handler blocks it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import structlog

from tasksvc.metrics import Metrics

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5
"""Between two looks, each of which asks the loop for a sign of life."""

_BLOCKED_SECONDS = 1.0
"""Without a sign of life the loop counts as blocked after this time."""

_PATIENCE_SECONDS = 60.0
"""So long the lease is renewed for a blocked loop. A process whose loop never comes back must lose
its tasks in the end."""

_FRAMES = 12


class LoopGuard:
    """Names what blocks the event loop, and renews the worker's lease while it is blocked.

    One `time.sleep` in an `async def` stops the heartbeat with everything else. Without this, it
    would cost all tasks of the process an attempt. What holds the interpreter's lock, such as a
    long call into a C library that does not release it, stops this thread too.
    """

    def __init__(
        self,
        worker_id: Callable[[], str | None],
        renew_lease: Callable[[str], None],
        metrics: Metrics,
        *,
        renew_after_seconds: float,
    ) -> None:
        """`renew_lease` blocks, and may raise anything; it is called in the thread.

        `renew_after_seconds` is the pause of the heartbeat.
        """
        self._worker_id = worker_id
        self._renew_lease = renew_lease
        self._metrics = metrics
        self._renew_after_seconds = max(_BLOCKED_SECONDS, renew_after_seconds)
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked_at: float | None = None  # when the loop was asked for the sign that is due

    def start(self) -> None:
        """Begins to watch the running loop. Called on its thread."""
        self._thread = threading.Thread(
            target=self._watch,
            args=(asyncio.get_running_loop(), threading.get_ident()),
            name="loop-guard",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; the thread ends by itself."""
        self._is_stopping.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        blocked_since: float | None = None
        renewed_at = 0.0
        looked_at = time.monotonic()
        while not self._is_stopping.wait(_LOOK_SECONDS):
            now, overslept = time.monotonic(), time.monotonic() - looked_at - _LOOK_SECONDS
            looked_at = now
            if overslept > _BLOCKED_SECONDS:
                self._asked_at = None  # the whole process stood still
            asked_at = self._asked_at
            if asked_at is None or now - asked_at < _BLOCKED_SECONDS:
                if blocked_since is not None:
                    self._say_over(now - blocked_since)
                    blocked_since = None
                if asked_at is None and not self._ask(loop):
                    return
                continue
            if blocked_since is None:
                blocked_since = renewed_at = asked_at
                self._say_blocked(loop, thread_id, now - asked_at)
            is_due = now - renewed_at >= self._renew_after_seconds
            if is_due and now - blocked_since <= _PATIENCE_SECONDS:
                self._renew()
                # It may have taken seconds, in which this thread did not stand still.
                renewed_at = looked_at = time.monotonic()

    def _ask(self, loop: asyncio.AbstractEventLoop) -> bool:
        """False when the loop is closed."""
        self._asked_at = time.monotonic()
        try:
            loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            return False
        return True

    def _answer(self) -> None:
        self._asked_at = None

    def _renew(self) -> None:
        if (worker_id := self._worker_id()) is None:
            return
        try:
            self._renew_lease(worker_id)
        except Exception as error:  # its text may hold an address
            log.warning(
                "The lease is not renewed", action="lease_not_renewed", error=type(error).__name__
            )

    def _say_blocked(self, loop: asyncio.AbstractEventLoop, thread_id: int, seconds: float) -> None:
        self._metrics.loop_blocks.add()
        frame = sys._current_frames().get(thread_id)
        frames = [] if frame is None else traceback.extract_stack(frame)[-_FRAMES:]
        log.warning(
            "A handler blocks the event loop",
            action="loop_blocked",
            seconds=round(seconds, 1),
            stack=" > ".join(f"{each.filename}:{each.lineno} {each.name}" for each in frames),
            **_task_of(loop),
        )

    def _say_over(self, seconds: float) -> None:
        log.warning("The event loop goes on", action="loop_goes_on", seconds=round(seconds, 1))


def _task_of(loop: asyncio.AbstractEventLoop) -> dict[str, str]:
    """The id of the task whose handler runs on the loop now, if it is one."""
    with suppress(Exception):  # asked from another thread
        current = asyncio.current_task(loop)
        if current is not None and current.get_name().startswith("task-"):
            return {"task_id": current.get_name().removeprefix("task-")}
    return {}
