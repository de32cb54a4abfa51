"""Runs one handler and says what it came to."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import structlog

from tasksvc import logs
from tasksvc.domain import outcome
from tasksvc.domain.outcome import COMPLETED, Outcome
from tasksvc.domain.retry import RetryPolicy, is_expected
from tasksvc.domain.task import Claim, Status
from tasksvc.handlers.context import about
from tasksvc.handlers.kinds import KindConfig
from tasksvc.handlers.limit import TimeLimit
from tasksvc.handlers.results import ResultRefused, encode
from tasksvc.metrics import Metrics
from tasksvc.runs import Run, StopReason

log = structlog.get_logger(__name__)

_is_logged = logging.getLogger(__name__).isEnabledFor


class Executor:
    """Knows the handlers, and what follows a failure."""

    def __init__(
        self,
        kinds: Mapping[str, KindConfig],
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
        started = time.perf_counter()
        try:
            logs.about(**about(run.claim))
            if _is_logged(logging.DEBUG):
                log.debug("Task started", action="started", kind=run.claim.kind)
            result = await _call(self._kinds[run.claim.kind], run.claim)
            then = COMPLETED if result is None else self._completed(result, run)
        except BaseException as error:
            return self.after(error, run, time.perf_counter() - started)
        else:
            if _is_logged(logging.DEBUG):
                _log_end("Task completed", "completed", run, time.perf_counter() - started)
            return then
        finally:
            if (observe := self._observe.get(run.claim.kind)) is not None:
                observe(time.perf_counter() - started)

    def after(self, error: BaseException, run: Run, seconds: float | None = None) -> Outcome | None:
        """What a run came to that ended with an error after so long, within `execute` or outside of
        it: one that was canceled before its first step, or whose coroutine was closed. Raises
        nothing."""
        if run.stop_reason is not None and type(error) is not ResultRefused:
            # Whatever it made of its cancellation.
            if _is_logged(logging.DEBUG):
                _log_end("Task stopped", "stopped", run, seconds, reason=run.stop_reason.name)
            claim, is_lost = run.claim, run.stop_reason is StopReason.LOST
            return None if is_lost else outcome.released(claim.attempt - claim.failures)
        then = self._retry_of(run).after_failure(run.claim, error)
        fields: dict[str, Any] = {"then": then.status}
        if then.status is Status.PENDING:
            fields["retry_in_seconds"] = round(then.delay_seconds, 3)
        if is_expected(error) and then.error is not None:
            fields["error"] = f"{then.error['type']}: {then.error['message']}"
        else:
            fields["exc_info"] = error
        try:
            _log_failure(run, seconds, fields)
        except BaseException:  # the error takes part in its own rendering
            fields.pop("exc_info", None)
            _log_failure(run, seconds, fields)
        return then

    def _completed(self, result: Any, run: Run) -> Outcome:
        return outcome.completed(encode(result, self._max_result_bytes))

    def _retry_of(self, run: Run) -> RetryPolicy:
        retry, claim = self._retry, run.claim
        if (kind := self._kinds.get(claim.kind)) is not None:
            retry = retry.within(kind.retry_base_seconds, kind.retry_max_seconds)
        return retry.within(claim.retry_base_seconds, claim.retry_max_seconds)


def _log_end(event: str, action: str, run: Run, seconds: float | None, **fields: Any) -> None:
    log.debug(event, action=action, kind=run.claim.kind, **_duration(seconds), **fields)


def _log_failure(run: Run, seconds: float | None, fields: dict[str, Any]) -> None:
    log.warning(
        "Handler failed",
        action="handler_failed",
        kind=run.claim.kind,
        **_duration(seconds),
        **fields,
    )


def _duration(seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else {"milliseconds": round(seconds * 1000, 2)}


async def _call(kind: KindConfig, claim: Claim) -> Any:
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
        result = await kind.handler(claim)
        limit.check()  # it may have held the loop, and the timer with it
        return result
