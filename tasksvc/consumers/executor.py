"""Runs one handler and says what it came to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from tasksvc import logs
from tasksvc.consumers.running import Run, StopReason
from tasksvc.domain import outcome
from tasksvc.domain.outcome import COMPLETED, RELEASED, Outcome
from tasksvc.domain.retry import RetryPolicy, describe
from tasksvc.domain.task import Claim
from tasksvc.handlers.kinds import Kind
from tasksvc.handlers.limit import TimeLimit
from tasksvc.metrics import Metrics

log = structlog.get_logger(__name__)


class ResultRefused(Exception):
    """What a handler returned can't be kept. Another attempt would return the like."""


class Executor:
    """Knows the handlers, and what follows a failure."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        retry: RetryPolicy,
        metrics: Metrics,
        *,
        max_result_bytes: int,
    ) -> None:
        self._kinds = kinds
        self._retry = retry
        self._max_result_bytes = max_result_bytes
        self._observe = {kind: metrics.attempt_seconds(kind) for kind in kinds}

    async def execute(self, run: Run) -> Outcome | None:
        """What the run came to; None when the task is no longer this worker's.

        Raises nothing, whatever the handler does: its `SystemExit` is a failure of its own.
        """
        logs.about(task_id=run.claim.id, attempt=run.claim.attempt)
        started = time.perf_counter()
        kind = self._kinds[run.claim.kind]
        try:
            result = await _call(kind, run.claim)
        except BaseException as error:
            return self._after(error, run, kind)
        else:
            return COMPLETED if result is None else self._completed(result, run)
        finally:
            self._observe[run.claim.kind](time.perf_counter() - started)

    def after(self, error: BaseException, run: Run) -> Outcome | None:
        """What a run came to that ended with an error outside of `execute`: one that was canceled
        before its first step, or whose coroutine was closed."""
        return self._after(error, run, self._kinds[run.claim.kind])

    def _completed(self, result: Any, run: Run) -> Outcome:
        try:
            encoded = orjson.dumps(result)
            if len(encoded) <= self._max_result_bytes:
                return outcome.completed(encoded.decode())
            reason = f"The result has more than {self._max_result_bytes} bytes."
        except TypeError:  # its text may hold the value
            reason = "The result is not JSON."
        log.warning("Result refused", action="result_refused", reason=reason)
        return outcome.failed(describe(ResultRefused(reason), run.claim.attempt))

    def _after(self, error: BaseException, run: Run, kind: Kind) -> Outcome | None:
        if run.stop_reason is not None:  # whatever it made of its cancellation
            return None if run.stop_reason is StopReason.LOST else RELEASED
        retry = self._retry.within(kind.retry_base_seconds, kind.retry_max_seconds)
        retry = retry.within(run.claim.retry_base_seconds, run.claim.retry_max_seconds)
        then = retry.after_failure(run.claim, error)
        log.warning("Handler failed", action="handler_failed", then=then.status, exc_info=error)
        return then


async def _call(kind: Kind, claim: Claim) -> Any:
    """What the handler returns. Raises whatever it does, and TimedOut."""
    seconds = claim.timeout_seconds or kind.timeout_seconds
    if seconds is None:
        return await kind.handler(claim)
    if claim.timeout_seconds is None:
        claim = claim._replace(timeout_seconds=seconds)
    if kind.keeps_time:
        return await kind.handler(claim)
    with TimeLimit(seconds) as limit:
        limit.begin()
        return await kind.handler(claim)
