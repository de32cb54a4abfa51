"""Single runs of handlers, for tests of handlers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tasksvc import Context, Permanent, Retry, SyncContext, handler
from tasksvc.domain.errors import UnknownKind
from tasksvc.handlers.kinds import HandlersError
from tasksvc.testing import TaskRun, run_task, run_task_sync
from tests.handlers import shop


@handler("tell")
async def tell(content: str, ctx: Context) -> Any:
    """Reports everything that it receives."""
    await ctx.progress(-1, "begins")
    await ctx.progress(0.5, "x" * 600)
    ctx.log.info("On its way")
    return {
        "content": content,
        "id": ctx.id,
        "attempt": ctx.attempt,
        "kind": ctx.kind,
        "remaining": ctx.remaining_seconds,
        "pair": (1, 2),
    }


@handler("quick", timeout_seconds=0.01)
async def quick(content: str, ctx: Context) -> None:
    await asyncio.Event().wait()


@handler("raise", max_attempts=2, retry_base_seconds=4, retry_max_seconds=4)
async def raises(content: str, ctx: Context) -> None:
    match content:
        case "retry":
            raise Retry("busy", after_seconds=60)
        case "permanent":
            raise Permanent("no use")
        case _:
            raise ValueError(content)


@handler("return")
async def returns(content: str, ctx: Context) -> Any:
    return object() if content == "object" else "x" * int(content)


async def test_handler_is_told_of_its_task_and_its_result_is_json() -> None:
    run = await run_task(tell, "hello", id="an-id", attempt=2)

    assert run == TaskRun(
        status="completed",  # type: ignore[arg-type]
        result={
            "content": "hello",
            "id": "an-id",
            "attempt": 2,
            "kind": "tell",
            "remaining": None,
            "pair": [1, 2],
        },
        error=None,
        traceback=None,
        progress=[(0.0, "begins"), (0.5, "x" * 500)],
        retry_after_seconds=None,
    )


async def test_every_task_has_an_id_of_its_own() -> None:
    ids = {(await run_task(tell, "x")).result["id"] for _ in range(2)}

    assert len(ids) == 2


def test_run_of_a_plain_test() -> None:
    run = run_task_sync(tell, "hello", timeout_seconds=60)

    assert run.status == "completed"
    assert 50 < run.result["remaining"] <= 60


@pytest.mark.parametrize("function", [shop.in_a_thread, shop.in_a_process])
def test_plain_functions_run_in_a_thread_of_this_process(function: Any) -> None:
    run = run_task_sync(function, "x")

    assert run.result["pid"] == os.getpid()
    assert len(run.progress) == 1


async def test_process_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop, "os", SimpleNamespace(getpid=lambda: -1))

    assert (await run_task(shop.in_a_process, "x")).result["pid"] == -1


async def test_failure_would_be_tried_again_after_the_backoff_of_its_kind() -> None:
    run = await run_task(raises, "why")

    assert run.status == "pending"
    assert run.error == {"type": "ValueError", "message": "why", "attempt": 1}
    assert run.traceback is not None
    assert "raise ValueError(content)" in run.traceback
    assert run.result is None
    assert run.retry_after_seconds is not None
    assert 0 <= run.retry_after_seconds <= 4


async def test_failure_that_says_when_to_try_again() -> None:
    run = await run_task(raises, "retry")

    assert (run.status, run.retry_after_seconds) == ("pending", 60)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("permanent", {}),
        ("retry", {"attempt": 2}),
        ("why", {"max_attempts": 1}),
    ],
)
async def test_failure_that_is_final(content: str, options: dict[str, Any]) -> None:
    run = await run_task(raises, content, **options)

    assert (run.status, run.retry_after_seconds) == ("failed", None)
    assert run.error is not None
    assert run.error["attempt"] == options.get("attempt", 1)


@pytest.mark.parametrize("content", ["object", "70000"])
async def test_result_that_the_service_would_refuse(content: str) -> None:
    run = await run_task(returns, content)

    assert run.status == "failed"
    assert run.error is not None
    assert run.error["type"] == "ResultRefused"


async def test_time_limit_of_the_kind_and_of_the_run() -> None:
    of_the_kind = await run_task(quick, "x")
    of_the_run = await run_task(shop.sleep, "60", timeout_seconds=0.01)

    assert of_the_kind.error is not None
    assert of_the_run.error is not None
    assert of_the_kind.error["type"] == of_the_run.error["type"] == "TimedOut"


async def test_canceled_on_the_loop() -> None:
    ended = asyncio.Event()

    @handler("stubborn")
    async def stubborn(content: str, ctx: Context) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return "done all the same"

    run = await run_task(stubborn, "x", cancel_after_seconds=0.01)

    assert ended.is_set()
    assert (run.status, run.result, run.error) == ("canceled", None, None)


def test_canceled_in_a_thread() -> None:
    told = threading.Event()

    @handler("listen")
    def listen(content: str, ctx: SyncContext) -> None:
        while not ctx.is_canceled:
            time.sleep(0.001)
        ctx.progress(1, "the caller is gone")
        told.set()

    run = run_task_sync(listen, "x", cancel_after_seconds=0.01)

    assert run.status == "canceled"
    assert told.wait(5)
    assert run.progress == []


async def test_test_that_is_canceled_cancels_the_handler() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    @handler("wait")
    async def wait(content: str, ctx: Context) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(run_task(wait, "x"))
    await started.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_by_its_kind_with_the_settings_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TASKSVC_HANDLERS", "tests.handlers.shop")
    monkeypatch.setenv("TASK_MAX_RESULT_BYTES", "5")

    run = await run_task("greet", "you")

    assert run.progress == [(0.5, "half the way")]
    assert run.error is not None
    assert run.error["type"] == "ResultRefused"


async def test_kind_that_nobody_serves() -> None:
    with pytest.raises(UnknownKind):
        await run_task("unknown-kind", "x")


async def test_function_that_is_no_handler() -> None:
    async def plain(content: str, ctx: Context) -> None: ...

    with pytest.raises(HandlersError, match="has no @handler"):
        await run_task(plain, "x")
