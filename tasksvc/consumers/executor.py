"""Runs one handler and says what it came to."""

from __future__ import annotations

import time

import structlog

from tasksvc.consumers.running import Run, StopReason
from tasksvc.domain.outcome import COMPLETED, RELEASED, Outcome
from tasksvc.domain.retry import RetryPolicy
from tasksvc.handlers import Handler
from tasksvc.metrics import Metrics

log = structlog.get_logger(__name__)


class Executor:
    """Knows the handler, and what follows a failure."""

    def __init__(self, handler: Handler, retry: RetryPolicy, metrics: Metrics) -> None:
        self._handler = handler
        self._retry = retry
        self._observe = metrics.task_processing_duration

    async def execute(self, run: Run) -> Outcome | None:
        """What the run came to; None when the task is no longer this worker's.

        Raises nothing, whatever the handler does: its `SystemExit` is a failure of its own.
        """
        structlog.contextvars.bind_contextvars(task_id=run.claim.id, attempt=run.claim.attempt)
        started = time.perf_counter()
        try:
            await self._handler(run.claim)
        except BaseException as error:
            return self._after(error, run)
        else:
            return COMPLETED
        finally:
            self._observe(time.perf_counter() - started)

    def _after(self, error: BaseException, run: Run) -> Outcome | None:
        if run.stop_reason is not None:  # whatever it made of its cancellation
            return None if run.stop_reason is StopReason.LOST else RELEASED
        outcome = self._retry.after_failure(run.claim, error)
        log.warning("Handler failed", action="handler_failed", then=outcome.status, exc_info=error)
        return outcome
