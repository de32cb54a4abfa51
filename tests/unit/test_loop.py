"""The loop: it survives every error, and stops when it is asked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog

from tasksvc import loop as loop_module
from tasksvc.domain.errors import StoreUnavailable
from tasksvc.loop import Loop, WakeUp
from tests.harness import eventually


class Counting:
    """A step that does what the test has put in its line, and then nothing."""

    name = "counting"

    def __init__(self, *answers: Any, pause_seconds: float = 0.001) -> None:
        self.pause_seconds = pause_seconds
        self.answers = list(answers)
        self.steps = 0

    async def run_once(self) -> int:
        self.steps += 1
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            return int(await answer())
        return int(answer)


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(loop_module, "_LONGEST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def start(step: Counting, wake_up: WakeUp | None = None) -> Loop:
        loops.append(Loop(step, wake_up))
        loops[-1].start()
        return loops[-1]

    yield start
    for loop in loops:
        await loop.stop(within_seconds=0)


Start = Callable[..., Loop]


async def test_steps_repeat(start: Start) -> None:
    step = Counting()
    start(step)

    await eventually(lambda: step.steps > 3)


async def test_no_pause_while_there_is_something_to_do(start: Start) -> None:
    step = Counting(5, 5, 5, pause_seconds=3600)
    start(step)

    await eventually(lambda: step.steps == 4)


async def test_wake_up_ends_the_pause_after_its_seconds(start: Start) -> None:
    step, wake_up = Counting(pause_seconds=3600), WakeUp()
    start(step, wake_up)
    await eventually(lambda: step.steps == 1)
    now = asyncio.get_running_loop().time
    began = now()

    wake_up.after(1800)
    wake_up.after(0.1)
    wake_up.after(0.5)  # later than the one that is set
    await eventually(lambda: step.steps == 2)

    assert 0.1 <= now() - began < 0.5
    wake_up.after(0.05)  # the first is over
    await eventually(lambda: step.steps == 3)


@pytest.mark.parametrize("seconds", [0, -5])
async def test_wake_up_without_delay_ends_the_pause(start: Start, seconds: float) -> None:
    step, wake_up = Counting(pause_seconds=3600), WakeUp()
    start(step, wake_up)
    await eventually(lambda: step.steps == 1)

    wake_up.after(seconds)

    await eventually(lambda: step.steps == 2)


async def test_wake_up_after_the_longest_pause_sets_no_timer() -> None:
    wake_up = WakeUp(within_seconds=0.5)

    wake_up.after(3600)

    assert wake_up._timer is None


async def test_wake_ends_the_pause(start: Start) -> None:
    step = Counting(pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    loop.wake()

    await eventually(lambda: step.steps == 2)


async def test_wake_during_a_step_is_not_lost(start: Start) -> None:
    gate = asyncio.Event()

    async def wait() -> int:
        await gate.wait()
        return 0

    step = Counting(wait, pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    loop.wake()
    gate.set()

    await eventually(lambda: step.steps == 2)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), StoreUnavailable(), TimeoutError(), asyncio.CancelledError()]
)
async def test_step_that_fails_is_tried_again(start: Start, error: BaseException) -> None:
    step = Counting(error, error, error)
    with structlog.testing.capture_logs() as logs:
        start(step)
        await eventually(lambda: step.steps > 4)

    levels = {line["log_level"] for line in logs}
    assert levels == ({"debug"} if isinstance(error, StoreUnavailable) else {"error"})


async def test_pauses_grow_while_it_fails_and_are_bounded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(loop_module, "_LEAST_BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    original = Loop._run_step

    async def run_step(self: Loop) -> float:
        pauses.append(await original(self))
        await asyncio.sleep(0)
        return 0.0

    monkeypatch.setattr(Loop, "_run_step", run_step)
    step = Counting(*[StoreUnavailable()] * 20, 1, StoreUnavailable(), pause_seconds=0.5)
    start(step)
    await eventually(lambda: len(pauses) > 22)

    assert pauses[:3] == [0.002, 0.004, 0.008]
    assert pauses[3:20] == [0.01] * 17
    assert pauses[20:23] == [0.0, 0.002, 0.5]


async def test_waking_does_not_cut_a_backoff_short(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that arrives while PostgreSQL is away must not make the loop hammer it."""
    monkeypatch.setattr(loop_module, "_FIRST_BACKOFF_SECONDS", 3600)
    monkeypatch.setattr(loop_module, "_LONGEST_BACKOFF_SECONDS", 3600)
    loops: list[Loop] = []

    async def fail() -> int:
        loops[0].wake()
        raise StoreUnavailable

    step = Counting(fail, pause_seconds=3600)
    loops.append(start(step))
    await eventually(lambda: step.steps == 1)
    for _ in range(20):
        await asyncio.sleep(0)

    assert step.steps == 1


async def test_killed_loop_starts_again(start: Start) -> None:
    step = Counting(pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    assert loop._task is not None
    loop._task.cancel()

    await eventually(lambda: step.steps == 2)
    assert not loop.is_done


async def test_step_under_way_is_the_last(start: Start) -> None:
    gate = asyncio.Event()

    async def wait() -> int:
        await gate.wait()
        return 1

    step = Counting(wait)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    loop.ask_to_stop()
    assert not loop.is_done
    gate.set()
    await eventually(lambda: loop.is_done)

    assert step.steps == 1


async def test_stop_ends_a_pause_at_once(start: Start) -> None:
    step = Counting(pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    async with asyncio.timeout(5):
        await loop.stop(within_seconds=3600)

    assert loop.is_done


async def test_stop_lets_the_step_end_within_its_time(start: Start) -> None:
    ended: list[bool] = []

    async def work() -> int:
        await asyncio.sleep(0.02)
        ended.append(True)
        return 0

    step = Counting(work)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    await loop.stop(within_seconds=10)

    assert ended


async def test_stop_insists_when_a_cancellation_is_swallowed(start: Start) -> None:
    swallowed: list[bool] = []

    async def swallow() -> int:
        while len(swallowed) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(True)
        return 0

    step = Counting(swallow)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    async with asyncio.timeout(5):
        await loop.stop(within_seconds=0)

    assert loop.is_done
    assert len(swallowed) == 3


async def test_stopped_loop_does_not_start_again(start: Start) -> None:
    step = Counting(pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    assert loop._task is not None
    loop._task.cancel()
    await asyncio.wait([loop._task])
    loop.ask_to_stop()
    await asyncio.sleep(0.01)

    assert loop.is_done
    assert step.steps == 1


async def test_stop_is_no_fault(start: Start) -> None:
    async def hang() -> int:
        await asyncio.Event().wait()
        return 0

    step = Counting(hang)
    loop = start(step)
    await eventually(lambda: step.steps == 1)
    with structlog.testing.capture_logs() as logs:
        await loop.stop(within_seconds=0)

    assert logs == []


async def test_loop_that_never_started_stops() -> None:
    loop = Loop(Counting())
    await loop.stop(within_seconds=0)

    assert loop.is_done
    assert not loop.is_stalled


async def test_loop_that_does_not_come_round_is_stalled(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def hang() -> int:
        await gate.wait()
        return 0

    step = Counting(1, hang, pause_seconds=0.001)
    loop = start(step)
    await eventually(lambda: step.steps == 2)
    assert not loop.is_stalled
    monkeypatch.setattr(loop_module, "_STALLED_AFTER_SECONDS", 0.01)
    await eventually(lambda: loop.is_stalled)
    gate.set()

    await eventually(lambda: not loop.is_stalled)


async def test_long_pause_is_no_stall(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_STALLED_AFTER_SECONDS", 0.0)
    step = Counting(pause_seconds=3600)
    loop = start(step)
    await eventually(lambda: step.steps == 1)

    assert not loop.is_stalled


async def test_step_that_neither_waits_nor_finds_anything_is_not_repeated_at_full_speed(
    start: Start,
) -> None:
    """As a subscription whose connection is closed: it answers at once, and for ever."""
    step = Counting(*[0] * 10_000, pause_seconds=0.0)
    start(step)

    await asyncio.sleep(0.2)

    assert step.steps <= 6


async def test_step_that_fails_at_once_is_not_repeated_at_full_speed(start: Start) -> None:
    step = Counting(*[StoreUnavailable()] * 10_000, pause_seconds=0.0001)
    start(step)

    await asyncio.sleep(0.2)

    assert step.steps <= 21


async def test_loop_that_always_does_something_lets_others_run(start: Start) -> None:
    step = Counting(*[1] * 1_000_000, pause_seconds=0.0)
    start(step)

    async with asyncio.timeout(5):
        await asyncio.sleep(0.01)


async def test_loop_says_for_how_long_it_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_FAILING_AFTER_SECONDS", 0.0)
    loop = Loop(Counting(ValueError(), StoreUnavailable(), 1))

    await loop._run_step()
    assert loop.is_failing
    await loop._run_step()
    assert not loop.is_failing
    assert loop.failing_seconds > 0
    await loop._run_step()
    assert loop.failing_seconds == 0
