"""Handlers of the user's own, on the loop, in threads and in processes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing import util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from tasksvc.consumers.executor import Executor
from tasksvc.domain.retry import RaisedElsewhere, RetryPolicy, TimedOut, Verdict, describe, trace
from tasksvc.domain.task import Claim, Status
from tasksvc.handlers import Handler, process
from tasksvc.handlers.kinds import HandlersError, KindConfig, load
from tasksvc.handlers.process import ProcessDied
from tasksvc.handlers.results import Encoded
from tasksvc.handlers.running import HandlerRunners
from tasksvc.metrics import Metrics
from tasksvc.runs import Run
from tests.harness import eventually

pytestmark = pytest.mark.slow

DECLARED = load(["tests.handlers.shop"])

Reported = list[tuple[float, str]]


@pytest.fixture
def reported() -> Reported:
    return []


@pytest.fixture
def handlers(reported: Reported) -> dict[str, Handler]:
    async def report(claim: Claim, fraction: float, message: str) -> None:
        reported.append((fraction, message))

    runners = HandlerRunners(report, threads=2, processes=2)
    return {kind: runners.handler_of(each) for kind, each in DECLARED.items()}


@pytest.fixture
def executor(handlers: dict[str, Handler], metrics: Metrics) -> Executor:
    kinds = {kind: KindConfig.of(each, handlers[kind]) for kind, each in DECLARED.items()}
    return Executor(kinds, RetryPolicy(0, 0), metrics, max_result_bytes=100)


def claim(kind: str, content: str = "x", *, timeout_seconds: float | None = None) -> Claim:
    return Claim("an-id", 2, 1, 3, content, None, 0.0, timeout_seconds, kind)


async def call(handlers: dict[str, Handler], kind: str, content: str = "x") -> Any:
    result = await handlers[kind](claim(kind, content))
    return json.loads(result.json) if isinstance(result, Encoded) else result


async def test_on_the_loop(handlers: dict[str, Handler], reported: Reported) -> None:
    result = await call(handlers, "greet", "you")

    assert result == {"hello": "you", "attempt": 2, "pid": os.getpid()}
    assert reported == [(0.5, "half the way")]


async def test_in_a_thread(handlers: dict[str, Handler], reported: Reported) -> None:
    result = await call(handlers, "whereabouts-thread")

    assert result == {"pid": os.getpid(), "thread": "task-an-id", "id": "an-id"}
    assert reported == [(0.25, "in a thread")]


async def test_in_a_process(handlers: dict[str, Handler], reported: Reported) -> None:
    result = await call(handlers, "whereabouts-process")

    assert result.pop("pid") != os.getpid()
    assert result == {"id": "an-id", "attempt": 2}
    assert reported == [(0.75, "in a process")]


async def test_loop_goes_on_while_a_process_holds_a_core(handlers: dict[str, Handler]) -> None:
    burning = asyncio.create_task(call(handlers, "burn", "0.3"))
    turns = 0
    while not burning.done():
        await asyncio.sleep(0.005)
        turns += 1

    assert await burning > 0
    assert turns > 10


async def test_thread_that_is_canceled_is_told_so_and_not_waited_for(
    handlers: dict[str, Handler],
) -> None:
    running = asyncio.create_task(call(handlers, "sleep-thread", "60"))
    await asyncio.sleep(0.05)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: not _threads())


async def test_thread_that_ignores_its_cancellation_keeps_its_place(
    handlers: dict[str, Handler],
) -> None:
    stubborn = [asyncio.create_task(call(handlers, "stubborn-thread", "0.5")) for _ in range(2)]
    await eventually(lambda: len(_threads()) == 2)
    for task in stubborn:
        task.cancel()
    await asyncio.wait(stubborn)

    began = time.monotonic()
    await call(handlers, "whereabouts-thread")

    assert time.monotonic() - began > 0.2


async def test_process_that_is_canceled_is_ended(
    handlers: dict[str, Handler], reported: Reported
) -> None:
    running = asyncio.create_task(call(handlers, "sleep-process", "60"))
    await eventually(lambda: reported)
    pid = int(reported[0][1])

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert not psutil.pid_exists(pid)


async def test_time_that_is_left(handlers: dict[str, Handler]) -> None:
    from tasksvc.handlers.context import Context

    async def report(fraction: float, message: str) -> None:
        pass

    context = Context("id", 1, "kind", time.monotonic() + 10, None, report)
    assert context.remaining_seconds == pytest.approx(10, abs=1)
    context.deadline = 0.0
    assert context.remaining_seconds == 0
    context.deadline = None
    assert context.remaining_seconds is None


@pytest.mark.parametrize("kind", ["sleep-thread", "sleep-process"])
async def test_run_that_takes_too_long_is_stopped(
    executor: Executor, reported: Reported, kind: str
) -> None:
    outcome = await executor.execute(Run(claim(kind, "60", timeout_seconds=0.2), None))

    assert outcome is not None
    error = {"type": "TimedOut", "message": "It ran for longer than 0.2 s.", "attempt": 2}
    assert outcome.error == error
    await eventually(lambda: not _threads())
    assert not any(psutil.pid_exists(int(pid)) for _, pid in reported)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sleep-thread", "sleep-process"])
async def test_time_limit_does_not_count_the_wait_for_a_place(
    executor: Executor, handlers: dict[str, Handler], reported: Reported, kind: str
) -> None:
    first = [asyncio.create_task(call(handlers, kind, "1.5")) for _ in range(2)]
    await eventually(lambda: len(_threads()) == 2 or len(reported) == 2)

    outcome = await executor.execute(Run(claim(kind, "0", timeout_seconds=1), None))

    assert outcome is not None
    assert outcome.status is Status.COMPLETED
    await asyncio.wait(first)


@pytest.mark.slow
async def test_time_limit_does_not_count_the_start_of_a_process(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ForkServerProcess.start

    def start_slowly(process: ForkServerProcess) -> None:
        time.sleep(1.2)
        start(process)

    monkeypatch.setattr(ForkServerProcess, "start", start_slowly)

    outcome = await executor.execute(Run(claim("sleep-process", "0", timeout_seconds=1), None))

    assert outcome is not None
    assert outcome.status is Status.COMPLETED


async def test_process_knows_how_long_it_may_run(handlers: dict[str, Handler]) -> None:
    left = await handlers["left-process"](claim("left-process", timeout_seconds=60))

    assert 50 < float(left.json) <= 60


async def test_error_of_a_process_keeps_its_name_and_its_traceback(
    handlers: dict[str, Handler],
) -> None:
    with pytest.raises(RaisedElsewhere) as raised:
        await call(handlers, "fail-process", "why")

    assert describe(raised.value, 1) == {"type": "Unheard", "message": "why", "attempt": 1}
    traced = trace(raised.value)
    assert traced is not None
    assert "in fail_in_a_process\n" in traced
    assert traced.endswith("tests.handlers.shop.Unheard: why\n")


async def test_process_may_say_that_it_is_no_use(handlers: dict[str, Handler]) -> None:
    with pytest.raises(RaisedElsewhere, match="no use") as raised:
        await call(handlers, "fail-process", "permanent")

    assert raised.value.verdict == Verdict(is_permanent=True)
    assert describe(raised.value, 1)["type"] == "Permanent"


async def test_process_that_dies_fails_its_task_alone(handlers: dict[str, Handler]) -> None:
    with pytest.raises(ProcessDied, match="exit code is 7"):
        await call(handlers, "fail-process", "exit")

    assert (await call(handlers, "whereabouts-process"))["id"] == "an-id"


async def test_result_that_cannot_leave_its_process(handlers: dict[str, Handler]) -> None:
    with pytest.raises(RaisedElsewhere):
        await call(handlers, "fail-process", "unpicklable")


async def test_threads_and_processes_are_bounded(handlers: dict[str, Handler]) -> None:
    for kind in ("sleep-thread", "sleep-process"):
        began = time.monotonic()
        await asyncio.gather(*(call(handlers, kind, "0.2") for _ in range(4)))

        assert time.monotonic() - began >= 0.4, kind


@pytest.mark.parametrize("way", ["thread", "process"])
async def test_start_that_fails_gives_its_place_back(
    handlers: dict[str, Handler], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def fail(self: Any) -> None:
        raise OSError("none left")

    await call(handlers, f"whereabouts-{way}")  # the thread that starts processes is there then
    with monkeypatch.context() as patches:
        patches.setattr(Thread if way == "thread" else ForkServerProcess, "start", fail)
        for _ in range(3):
            with pytest.raises((OSError, ProcessDied), match="none left"):
                await call(handlers, f"whereabouts-{way}")

    await asyncio.gather(*(call(handlers, f"whereabouts-{way}") for _ in range(3)))


async def test_thread_that_goes_on_lingers_until_it_ends() -> None:
    freed: list[int] = []
    runners = HandlerRunners(keeps_nothing, threads=1, processes=1)
    runners.when_thread_free(lambda: freed.append(1))
    handle = runners.handler_of(DECLARED["stubborn-thread"])
    await eventually(lambda: not _threads())
    running = asyncio.create_task(handle(claim("stubborn-thread", "0.5")))
    await eventually(_threads)
    assert (runners.lingering_threads, freed) == (0, [])

    running.cancel()
    await asyncio.wait([running])

    assert (runners.lingering_threads, freed) == (1, [])
    await eventually(lambda: freed)
    assert (runners.lingering_threads, freed) == (0, [1])


async def test_message_of_many_megabytes_does_not_hold_the_loop() -> None:
    handle = HandlerRunners(keeps_nothing, threads=1, processes=1).handler_of(
        DECLARED["long-process"]
    )
    running = asyncio.create_task(handle(claim("long-process", "20000000")))
    longest, last = 0.0, time.monotonic()
    while not running.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()

    assert len((await running).json) == 20_000_002
    assert longest < 1


@pytest.mark.slow
async def test_message_that_is_too_long_is_a_failure() -> None:
    handle = HandlerRunners(keeps_nothing, threads=1, processes=1).handler_of(
        DECLARED["long-process"]
    )

    with pytest.raises(RaisedElsewhere, match="The result has more than 67107864 bytes") as raised:
        await handle(claim("long-process", "67108864"))

    assert raised.value.name == "ResultRefused"


@pytest.mark.parametrize("how", ["dies", "returns", "is canceled", "is too late"])
async def test_all_that_a_process_has_started_ends_with_it(
    handlers: dict[str, Handler], reported: Reported, how: str
) -> None:
    content = {"dies": "dies", "returns": "0"}.get(how, "60")
    order = claim("forks-process", content, timeout_seconds=0.5 if how == "is too late" else None)
    running = asyncio.create_task(handlers["forks-process"](order))
    await eventually(lambda: reported)
    if how == "is canceled":
        running.cancel()
        running.cancel()

    await asyncio.wait([running])

    ends = {"dies": ProcessDied, "is canceled": asyncio.CancelledError, "is too late": TimedOut}
    if how == "returns":
        assert await running is None
    else:
        with pytest.raises(ends[how]):
            await running
    for pid in map(int, reported[0][1].split()):
        await eventually(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]


async def test_process_that_is_canceled_while_it_starts_is_ended(
    handlers: dict[str, Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = ForkServerProcess.start

    def start_slowly(process: ForkServerProcess) -> None:
        time.sleep(0.1)
        start(process)
        assert process.pid is not None
        started.append(process.pid)

    monkeypatch.setattr(ForkServerProcess, "start", start_slowly)
    running = asyncio.create_task(call(handlers, "sleep-process", "60"))
    await asyncio.sleep(0.05)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(started) == 1
    assert not psutil.pid_exists(started[0])


async def test_folder_of_a_long_path_is_not_used_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "tempdir", None)

    process.choose_short_folder()

    assert not util.get_temp_dir().startswith(str(long))  # multiprocessing removes it
    assert tempfile.gettempdir() == str(long)


def test_no_folder_for_sockets_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SOCKET_PATH_BYTES", 3)

    with pytest.raises(HandlersError, match=r"TMPDIR: .* is too long for the socket"):
        process.choose_short_folder()


async def keeps_nothing(claim: Claim, fraction: float, message: str) -> None:
    """A report that is dropped."""


def _threads() -> list[Any]:
    import threading

    return [each for each in threading.enumerate() if each.name == "task-an-id"]
