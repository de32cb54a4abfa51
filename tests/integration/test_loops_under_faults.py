"""Every error of every loop comes at once, and for ever: no loop spins, and the service ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
from aiohttp import web

from tasksvc.app import BACKGROUND, create_app
from tasksvc.domain.errors import (
    DataRejected,
    LeaseLost,
    StatementRefused,
    StoreUnavailable,
    StreamUnavailable,
    Unreadable,
)
from tasksvc.loop import Loop
from tasksvc.settings import Settings
from tasksvc.store.store import Store
from tasksvc.stream.task_stream import TaskStream
from tests.harness import eventually
from tests.integration.conftest import do_nothing

pytestmark = pytest.mark.slow

SECONDS = 0.7

MOST_STEPS = 40
"""Of one loop in that time: a pause of 20 ms at least is between two."""

STORE_ERRORS: list[Callable[[], BaseException]] = [
    StoreUnavailable,
    StatementRefused,
    DataRejected,
    Unreadable,
    LeaseLost,
    TimeoutError,
    ValueError,
    RecursionError,
    asyncio.CancelledError,  # as aiopg calls a statement that the server has ended
]

STREAM_FAULTS: list[Callable[[], Any]] = [
    StreamUnavailable,
    ValueError,
    lambda: None,  # it answers at once, and with nothing
]


@pytest.fixture
async def steps(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[web.Application, Counter[str]]]:
    """The whole service within the test, and how often each of its loops has come round."""
    counts: Counter[str] = Counter()
    run_step = Loop._run_step

    async def count(loop: Loop) -> float:
        counts[loop.name] += 1
        return await run_step(loop)

    monkeypatch.setattr(Loop, "_run_step", count)
    app = create_app(replace(settings, workers=2, grace_seconds=0.2), do_nothing)
    runner = web.AppRunner(app)
    await runner.setup()
    await eventually(lambda: len(counts) >= 11)
    yield app, counts
    monkeypatch.undo()
    began = time.monotonic()
    await runner.cleanup()
    assert time.monotonic() - began < 10


def break_store(monkeypatch: pytest.MonkeyPatch, make: Callable[[], BaseException]) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise make()

    monkeypatch.setattr(Store, "_run", fail)


def break_stream(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        fault = make()
        if fault is not None:
            raise fault
        return []

    for name in ("read", "read_now", "read_again", "read_canceled", "look", "worker_ids"):
        monkeypatch.setattr(TaskStream, name, fail)


@pytest.mark.parametrize(
    ("store", "stream"),
    [
        *[(error, None) for error in STORE_ERRORS],
        *[(None, fault) for fault in STREAM_FAULTS],
        (StoreUnavailable, StreamUnavailable),
        (ValueError, ValueError),
    ],
    ids=lambda fault: getattr(fault, "__name__", "fine"),
)
async def test_no_loop_spins(
    steps: tuple[web.Application, Counter[str]],
    store: Callable[[], BaseException] | None,
    stream: Callable[[], Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, counts = steps
    await asyncio.sleep(0.1)
    with monkeypatch.context() as patch:
        if store is not None:
            break_store(patch, store)
        if stream is not None:
            break_stream(patch, stream)
        for loop in app[BACKGROUND]._loops():
            loop.wake()
        process = psutil.Process()
        memory = process.memory_info().rss
        counts.clear()
        await asyncio.sleep(SECONDS)
        assert max(counts.values()) <= MOST_STEPS, counts
        assert process.memory_info().rss - memory < 20_000_000
