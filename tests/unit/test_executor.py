"""Running one handler, whatever it does."""

from __future__ import annotations

import asyncio
import time
import traceback
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from tasksvc import logs
from tasksvc.consumers import executor
from tasksvc.consumers.executor import Executor
from tasksvc.domain.outcome import COMPLETED, RELEASED, Outcome, completed
from tasksvc.domain.retry import Permanent, RaisedElsewhere, Retry, RetryPolicy, TimedOut
from tasksvc.domain.task import Claim, Status
from tasksvc.handlers import Handler
from tasksvc.handlers.kinds import KindConfig
from tasksvc.metrics import Metrics
from tasksvc.runs import Run, StopReason


def make_run(*, failures: int = 0) -> Run:
    return Run(Claim("a", failures + 1, failures, 3, "hello", None, 0.0), entry="1-0")


def make_executor(handler: Handler, metrics: Metrics) -> Executor:
    return Executor(
        {"default": KindConfig(handler)}, RetryPolicy(0.0, 0.0), metrics, max_result_bytes=20
    )


def raises(error: BaseException) -> Handler:
    async def handler(claim: Claim) -> None:
        raise error

    return handler


async def test_handler_gets_the_claim_and_completes(metrics: Metrics) -> None:
    seen: list[Claim] = []

    async def handler(claim: Claim) -> None:
        seen.append(claim)

    run = make_run()

    assert await make_executor(handler, metrics).execute(run) is COMPLETED
    assert seen == [run.claim]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        MemoryError(),
        asyncio.CancelledError(),  # the handler raised it itself
        BaseExceptionGroup("many", [ValueError(), SystemExit()]),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_a_failure_of_its_own(
    metrics: Metrics, error: BaseException
) -> None:
    result = await make_executor(raises(error), metrics).execute(make_run())

    assert result is not None
    assert result.status is Status.PENDING
    assert result.is_charged
    assert result.error is not None
    assert result.error["type"] == type(error).__name__


@pytest.mark.parametrize(
    ("result", "text"),
    [(0, "0"), ("", '""'), ({"a": [1, None]}, '{"a":[1,null]}'), ("x" * 18, f'"{"x" * 18}"')],
)
async def test_what_a_handler_returns_is_the_result(
    metrics: Metrics, result: Any, text: str
) -> None:
    async def handler(claim: Claim) -> Any:
        return result

    assert await make_executor(handler, metrics).execute(make_run()) == completed(text)


@pytest.mark.parametrize("result", ["x" * 19, object(), {(1, 2): 3}, 10**20, "\ud800"])
async def test_result_that_cannot_be_kept_fails_for_good(metrics: Metrics, result: Any) -> None:
    async def handler(claim: Claim) -> Any:
        return result

    refused = await make_executor(handler, metrics).execute(make_run())

    assert refused is not None
    assert (refused.status, refused.is_charged) == (Status.FAILED, True)
    assert refused.error is not None
    assert refused.error["type"] == "ResultRefused"
    assert refused.error["message"].startswith("The result ")


async def test_handler_that_takes_too_long_is_stopped_and_charged(metrics: Metrics) -> None:
    ended = asyncio.Event()

    async def handler(claim: Claim) -> None:
        try:
            await sleeps(claim)
        finally:
            ended.set()

    run = make_run()
    run.claim = run.claim._replace(timeout_seconds=0.01)
    result = await make_executor(handler, metrics).execute(run)

    assert ended.is_set()
    assert result is not None
    assert (result.status, result.is_charged) == (Status.PENDING, True)
    assert result.error == {
        "type": "TimedOut",
        "message": "It ran for longer than 0.01 s.",
        "attempt": 1,
    }


@pytest.mark.parametrize("holds_the_loop", [False, True])
async def test_time_out_that_the_handler_swallows_is_one(
    metrics: Metrics, holds_the_loop: bool
) -> None:
    async def handler(claim: Claim) -> str:
        if holds_the_loop:
            time.sleep(0.02)  # noqa: ASYNC251
        else:
            with suppress(asyncio.CancelledError):
                await sleeps(claim)
        return "done"

    run = make_run()
    run.claim = run.claim._replace(timeout_seconds=0.01)
    result = await make_executor(handler, metrics).execute(run)

    assert result is not None
    assert result.error is not None
    assert (result.error["type"], result.is_charged) == ("TimedOut", True)


async def test_time_out_of_the_handlers_own_stays_its_own(metrics: Metrics) -> None:
    run = make_run()
    run.claim = run.claim._replace(timeout_seconds=10.0)
    result = await make_executor(raises(TimeoutError("mine")), metrics).execute(run)

    assert result is not None
    assert result.error == {"type": "TimeoutError", "message": "mine", "attempt": 1}


async def test_last_failure_is_final(metrics: Metrics) -> None:
    result = await make_executor(raises(ValueError("no")), metrics).execute(make_run(failures=2))

    assert result is not None
    assert (result.status, result.is_charged) == (Status.FAILED, True)
    assert result.error == {"type": "ValueError", "message": "no", "attempt": 3}
    assert result.traceback is not None
    assert result.traceback.startswith("Traceback (most recent call last):\n")
    assert result.traceback.endswith("in handler\n    raise error\nValueError: no\n")


@pytest.mark.parametrize(
    ("of_kind", "of_task", "expected"),
    [
        ((None, None), (None, None), 10),
        ((20, None), (None, None), 20),
        ((None, 5), (None, None), 5),
        ((20, 30), (40, None), 40),
        ((20, 30), (None, 0), 0),
    ],
)
async def test_bounds_of_a_task_go_before_those_of_its_kind_and_of_the_service(
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    of_kind: tuple[float | None, float | None],
    of_task: tuple[float | None, float | None],
    expected: float,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    kind = KindConfig(raises(ValueError("no")), None, *of_kind)
    executor = Executor({"default": kind}, RetryPolicy(10, 25), metrics, max_result_bytes=20)
    run = make_run()
    run.claim = run.claim._replace(retry_base_seconds=of_task[0], retry_max_seconds=of_task[1])

    result = await executor.execute(run)

    assert result is not None
    assert result.delay_seconds == expected


async def test_error_outside_of_the_handler_is_a_failure_of_the_task(metrics: Metrics) -> None:
    run = make_run()
    run.claim = run.claim._replace(kind="unknown here")
    result = await make_executor(sleeps, metrics).execute(run)

    assert result is not None
    assert (result.status, result.is_charged) == (Status.PENDING, True)
    assert result.error == {"type": "KeyError", "message": "'unknown here'", "attempt": 1}


@pytest.mark.parametrize("failure", [RecursionError(), SystemExit(3)], ids=lambda each: str(each))
async def test_error_that_can_not_be_logged_is_a_failure_like_any_other(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    logged: list[dict[str, Any]] = []

    def warning(event: str, **values: Any) -> None:
        if "exc_info" in values:
            raise failure
        logged.append(values)

    monkeypatch.setattr("tasksvc.consumers.executor.log", SimpleNamespace(warning=warning))
    result = await make_executor(raises(ValueError("no")), metrics).execute(make_run())

    assert result is not None
    assert result.error == {"type": "ValueError", "message": "no", "attempt": 1}
    assert len(logged) == 1


async def test_result_that_will_not_do_is_a_failure_also_at_shutdown(metrics: Metrics) -> None:
    run = make_run()
    run.stop_reason = StopReason.SHUTDOWN

    async def handler(claim: Claim) -> object:
        return object()

    result = await make_executor(handler, metrics).execute(run)

    assert result is not None
    assert result.status is Status.FAILED


async def stopped(handler: Handler, reason: StopReason, metrics: Metrics) -> Outcome | None:
    """What a run comes to that is stopped while it runs."""
    started = asyncio.Event()

    async def begin(claim: Claim) -> None:
        started.set()
        await handler(claim)

    run = make_run()
    run.task = asyncio.create_task(make_executor(begin, metrics).execute(run))
    await started.wait()
    run.stop(reason)
    return await run.task


async def sleeps(claim: Claim) -> None:
    await asyncio.Event().wait()


async def makes_an_error_of_it(claim: Claim) -> None:
    try:
        await sleeps(claim)
    except asyncio.CancelledError:
        raise ValueError("stopped?") from None


async def completes_all_the_same(claim: Claim) -> None:
    try:
        await sleeps(claim)
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize("handler", [sleeps, makes_an_error_of_it])
async def test_stopped_at_shutdown_is_handed_back_and_not_charged(
    metrics: Metrics, handler: Handler
) -> None:
    assert await stopped(handler, StopReason.SHUTDOWN, metrics) is RELEASED


@pytest.mark.parametrize("handler", [sleeps, makes_an_error_of_it])
async def test_lost_task_comes_to_nothing(metrics: Metrics, handler: Handler) -> None:
    assert await stopped(handler, StopReason.LOST, metrics) is None


async def test_work_that_is_done_all_the_same_is_not_thrown_away(metrics: Metrics) -> None:
    """If the task is no longer ours, its attempt fences the result off."""
    assert await stopped(completes_all_the_same, StopReason.SHUTDOWN, metrics) is COMPLETED


async def test_time_is_observed_of_successes_and_failures(metrics: Metrics) -> None:
    observed: list[float] = []
    metrics.attempt_seconds = {"default": observed.append}.get  # type: ignore[method-assign,assignment]
    await make_executor(raises(ValueError()), metrics).execute(make_run())
    await make_executor(lambda claim: asyncio.sleep(0.02), metrics).execute(make_run())

    assert len(observed) == 2
    assert observed[0] >= 0
    assert observed[1] >= 0.02


async def test_what_a_handler_logs_names_its_task(metrics: Metrics) -> None:
    bound: list[dict[str, Any]] = []

    async def handler(claim: Claim) -> None:
        bound.append(logs.context())

    await asyncio.create_task(make_executor(handler, metrics).execute(make_run()))

    assert bound == [{"task_id": "a", "attempt": 1}]
    assert logs.context() == {}


# The log.


async def said_of(handler: Handler, metrics: Metrics, run: Run) -> list[dict[str, Any]]:
    with structlog.testing.capture_logs() as lines:
        await make_executor(handler, metrics).execute(run)
    return [dict(line) for line in lines]


async def test_failure_says_how_long_it_took_and_when_the_next_try_comes(metrics: Metrics) -> None:
    (line,) = await said_of(raises(ValueError("no")), metrics, make_run())

    assert (line["action"], line["kind"], line["then"]) == ("handler_failed", "default", "pending")
    assert line["retry_in_seconds"] == 0
    assert 0 <= line["milliseconds"] < 10_000
    names = [frame.name for frame in traceback.extract_tb(line["exc_info"].__traceback__)]
    assert names == ["handler"]  # without the service's own

    (line,) = await said_of(raises(ValueError("no")), metrics, make_run(failures=2))
    assert line["then"] == "failed"
    assert "retry_in_seconds" not in line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Permanent("no use"), "Permanent: no use"),
        (Retry("busy", after_seconds=7), "Retry: busy"),
        (type("Gone", (Permanent,), {})("x"), "Gone: x"),
        (RaisedElsewhere.of(Retry("busy")), "Retry: busy"),
        (TimedOut("late"), "TimedOut: late"),
    ],
)
async def test_expected_failure_has_no_traceback(
    metrics: Metrics, error: Exception, text: str
) -> None:
    (line,) = await said_of(raises(error), metrics, make_run())

    assert line["error"] == text
    assert "exc_info" not in line
    if getattr(error, "after_seconds", None):
        assert line["retry_in_seconds"] == 7


async def test_start_and_end_are_said_when_debugging(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(claim: Claim) -> None:
        return None

    assert await said_of(handler, metrics, make_run()) == []

    monkeypatch.setattr(executor, "_is_logged", lambda level: True)
    started, ended = await said_of(handler, metrics, make_run())
    assert (started["action"], started["kind"]) == ("started", "default")
    assert (ended["action"], ended["kind"]) == ("completed", "default")
    assert 0 <= ended["milliseconds"] < 10_000
