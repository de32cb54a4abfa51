"""The loop of everything that runs in the background: a step, a pause, and a restart if it dies."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from math import inf
from typing import Protocol

import structlog

from tasksvc.domain.errors import Unavailable

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 2.0
_LEAST_BACKOFF_SECONDS = 0.02
"""However short the pause of a step is, a step that fails is not repeated at full speed."""

_FAILING_AFTER_SECONDS = 10.0
"""Seconds of consecutive failures until the loop counts as failing. No operator can act on less."""

_QUICK_SECONDS = 0.005
_QUICK_PAUSE_SECONDS = 0.05
"""The pause after a step that found nothing and did not wait, although its wait is its pause. A
closed connection may answer at once, again and again."""

_STALLED_AFTER_SECONDS = 30.0
"""No healthy step takes longer: the drivers' time limits and its own pause bound each step."""


class LoopBody(Protocol):
    """What a loop repeats."""

    name: str

    pause_seconds: float
    """How long to wait after a step that found nothing to do."""

    async def run_once(self) -> int:
        """Returns how many things it did. After 0, the loop pauses."""


class WakeUp:
    """Ends the pause of a loop: at once, or after a number of seconds.

    It is created before the loop, for objects that wake the loop and that the loop itself needs.
    """

    def __init__(self, within_seconds: float = inf) -> None:
        """`within_seconds` is the loop's own longest pause: what is due later needs no wake-up."""
        self._within_seconds = within_seconds
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0

    def now(self) -> None:
        """Ends the pause."""
        self._event.set()

    def after(self, seconds: float) -> None:
        """Ends the pause after this number of seconds, or earlier."""
        if seconds >= self._within_seconds:
            return
        if seconds <= 0:
            self.now()
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now < self._due_at <= now + seconds:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_at = now + seconds
        self._timer = loop.call_at(self._due_at, self.now)

    def clear(self) -> None:
        """Forgets earlier wake-ups."""
        self._event.clear()

    async def wait(self, seconds: float) -> None:
        """Returns at the next wake-up, or after this number of seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class Loop:
    """Repeats a step until it is asked to stop.

    It survives any error of the step, with backoff and jitter, and restarts if it ends: a
    CancelledError that this service did not send is a fault like any other.
    """

    def __init__(self, step: LoopBody, wake_up: WakeUp | None = None) -> None:
        self.name = step.name
        self._step = step
        self._is_stopping = False
        self._wake_up = wake_up or WakeUp()
        self._ticked_at = time.monotonic()
        self._failures = 0
        self._failing_since = 0.0
        self._is_unexpected = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether the current step takes too long."""
        late = time.monotonic() - self._ticked_at - max(0.0, self._step.pause_seconds)
        return self._task is not None and late > _STALLED_AFTER_SECONDS

    @property
    def failing_seconds(self) -> float:
        """For how many seconds every step has failed; 0 after a step that succeeded."""
        return time.monotonic() - self._failing_since if self._failures else 0.0

    @property
    def is_failing(self) -> bool:
        """Whether its steps have failed for some time with an unexpected error."""
        return self._is_unexpected and self.failing_seconds > _FAILING_AFTER_SECONDS

    @property
    def is_stopping(self) -> bool:
        """Whether the current step is the last one."""
        return self._is_stopping

    @property
    def is_done(self) -> bool:
        return self._task is None or self._task.done()

    def start(self) -> None:
        self._ticked_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name=self.name)
        self._task.add_done_callback(self._ended)

    def wake(self) -> None:
        """Starts the next step without a pause."""
        self._wake_up.now()

    def ask_to_stop(self) -> None:
        """Makes the current step the last one."""
        self._is_stopping = True
        self._wake_up.now()

    async def stop(self, within_seconds: float) -> None:
        """Waits until the current step ends, and cancels it after `within_seconds`.

        Cancels again until it is done: `asyncio.wait_for` of Python 3.11, which the drivers use,
        can swallow a cancellation.
        """
        self.ask_to_stop()
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=within_seconds)
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    async def _run(self) -> None:
        while not self._is_stopping:
            self._wake_up.clear()
            pause = await self._run_step()
            self._ticked_at = time.monotonic()
            # Always once: a step that never waits would keep the event loop for itself.
            await asyncio.sleep(0)
            if pause > 0 and not self._is_stopping:
                await self._wake_up.wait(pause)

    async def _run_step(self) -> float:
        """Runs the step, and returns the seconds to pause."""
        began = time.monotonic()
        is_unexpected = False
        try:
            done = await self._step.run_once()
        except Unavailable as error:
            # The driver has logged the outage; here it's only a reason to wait.
            log.debug(
                "Dependency unavailable, backing off",
                action="loop_waits",
                loop=self.name,
                reason=type(error).__name__,
            )
        except Exception:
            is_unexpected = True
            log.exception("Loop step failed", action="loop_failed", loop=self.name)
        else:
            self._failures = 0
            if done:
                return 0.0
            is_quick = time.monotonic() - began < _QUICK_SECONDS
            return self._step.pause_seconds or (_QUICK_PAUSE_SECONDS if is_quick else 0.0)
        if not self._failures:
            self._failing_since = began
        self._is_unexpected = is_unexpected
        self._failures += 1
        ceiling = _FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 10)
        # A lease would not wait for longer than a heartbeat's pause.
        longest = min(
            _LONGEST_BACKOFF_SECONDS, self._step.pause_seconds or _LONGEST_BACKOFF_SECONDS
        )
        self._wake_up.clear()
        return max(_LEAST_BACKOFF_SECONDS, min(longest, ceiling)) * random.uniform(0.5, 1)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._is_stopping:
            return
        error = None if task.cancelled() else task.exception()
        log.error("Loop died, restarting", action="loop_ended", loop=self.name, exc_info=error)
        asyncio.get_running_loop().call_later(_FIRST_BACKOFF_SECONDS, self._start_again)

    def _start_again(self) -> None:
        if not self._is_stopping:
            self.start()
