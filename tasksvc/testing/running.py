"""A single run of a handler, by what a worker runs it with, and without any server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uuid_utils

from tasksvc import __version__
from tasksvc.consumers.executor import Executor
from tasksvc.domain.errors import UnknownKind
from tasksvc.domain.outcome import Outcome
from tasksvc.domain.retry import RetryPolicy
from tasksvc.domain.task import Claim, Progress, Status
from tasksvc.handlers.context import Report
from tasksvc.handlers.kinds import HandlerSpec, KindConfig, declared_on, load
from tasksvc.handlers.running import HandlerRunners
from tasksvc.metrics import Metrics
from tasksvc.runs import Run, StopReason
from tasksvc.settings import Settings


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What a run came to, as the service would keep it."""

    status: Status
    """`pending` when it failed and would be tried again."""
    result: Any
    """What the handler returned, as JSON has it."""
    error: dict[str, Any] | None
    """`{type, message, attempt}` of what it raised."""
    traceback: str | None
    progress: list[tuple[float, str]]
    """All that it reported, in order."""
    retry_after_seconds: float | None
    """How long a task that is tried again waits; None when it is not."""


async def run_task(
    handler: Callable[..., Any] | str,
    content: str,
    *,
    id: str | None = None,
    attempt: int = 1,
    max_attempts: int | None = None,
    timeout_seconds: float | None = None,
    cancel_after_seconds: float | None = None,
) -> TaskRun:
    """Runs a handler once, with a task of this content; it takes what a service would take from
    the environment, and all attempts before this one have failed.

    `handler` is the function that `@handler` was put on, or its kind, when `TASKSVC_HANDLERS` or
    an entry point leads to it. One of `run_in="process"` runs in a thread of this process, where
    it can be patched, stepped through and measured; in a process of its own it runs in
    `run_service`.

    Raises HandlersError, SettingsError and UnknownKind; whatever the handler raises is in the
    answer.
    """
    settings = Settings.from_env()
    declared = _declared(handler, settings)
    progress: list[tuple[float, str]] = []

    async def report(claim: Claim, fraction: float, message: str) -> None:
        kept = Progress.of(claim, fraction, message)
        progress.append((kept.fraction, kept.message))

    claim = Claim(
        id=id or str(uuid_utils.uuid7()),
        attempt=attempt,
        failures=attempt - 1,
        max_attempts=max_attempts or declared.max_attempts or settings.max_attempts,
        content=content,
        traceparent=None,
        waited_seconds=0.0,
        timeout_seconds=timeout_seconds,
        kind=declared.kind,
    )
    executor = _executor(declared, report, settings)
    outcome = await _outcome(executor, Run(claim, entry=None), cancel_after_seconds)
    if outcome is None:
        return TaskRun(Status.CANCELED, None, None, None, progress, None)
    return TaskRun(
        outcome.status,
        None if outcome.result is None else json.loads(outcome.result),
        outcome.error,
        outcome.traceback,
        progress,
        outcome.delay_seconds if outcome.status is Status.PENDING else None,
    )


def run_task_sync(handler: Callable[..., Any] | str, content: str, **options: Any) -> TaskRun:
    """`run_task` with the same options, for a test that is no coroutine function."""
    return asyncio.run(run_task(handler, content, **options))


def _declared(handler: Callable[..., Any] | str, settings: Settings) -> HandlerSpec:
    if not isinstance(handler, str):
        declared = declared_on(handler)
    elif (found := load(settings.handlers).get(handler)) is not None:
        declared = found
    else:
        raise UnknownKind
    if declared.run_in == "process":
        declared = dataclasses.replace(declared, run_in="thread")
    return declared


def _executor(declared: HandlerSpec, report: Report, settings: Settings) -> Executor:
    runners = HandlerRunners(
        report, threads=1, processes=1, max_result_bytes=settings.max_result_bytes
    )
    kind = KindConfig.of(declared, runners.handler_of(declared))
    return Executor(
        {declared.kind: kind},
        RetryPolicy(settings.retry_base_seconds, settings.retry_max_seconds),
        Metrics(__version__),
        max_result_bytes=settings.max_result_bytes,
    )


async def _outcome(
    executor: Executor, run: Run, cancel_after_seconds: float | None
) -> Outcome | None:
    """None when it was canceled: what it came to all the same would not be recorded."""
    running = run.task = asyncio.create_task(executor.execute(run))
    try:
        await asyncio.wait([running], timeout=cancel_after_seconds)
        return running.result() if running.done() else None
    finally:
        run.stop(StopReason.LOST)
        await asyncio.wait([running])
