"""Handlers that misbehave, on the loop, in a thread and in a process.

The content is JSON: `does` names one of the deeds, `draw` decides what it draws. All of them end
within seconds.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import multiprocessing
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tasksvc import Context, Permanent, Retry, SyncContext, handler
from tests.faults.handlers import note

KINDS = {"loop": "bad-loop", "thread": "bad-thread", "process": "bad-process"}

FORGED = "FORGED"
"""No line of a log may begin with it: a handler has tried to make one."""

BLOCKED_SECONDS = 3.0
"""Longer than the lease."""

_GRANDCHILD_SECONDS = 3.0

Deed = Callable[[random.Random, Any], Any]

DEEDS: dict[str, dict[str, Deed]] = {}
"""By what they are of: poison, forks, …"""


def _deed(group: str) -> Callable[[Deed], Deed]:
    def add(deed: Deed) -> Deed:
        DEEDS.setdefault(group, {})[deed.__name__.strip("_")] = deed
        return deed

    return add


@handler(KINDS["loop"], timeout_seconds=15)
async def on_the_loop(content: str, context: Context) -> Any:
    deed, chance = _orders(content)
    note("start", context)
    try:
        result = deed(chance, context)
        if inspect.iscoroutine(result) and deed in DEEDS["progress"].values():
            result = await result
    except BaseException:
        note("stop", context)
        raise
    note("end", context)
    return result


@handler(KINDS["thread"], timeout_seconds=15)
def in_a_thread(content: str, context: SyncContext) -> Any:
    return _beside(content, context)


@handler(KINDS["process"], timeout_seconds=15, run_in="process")
def in_a_process(content: str, context: SyncContext) -> Any:
    return _beside(content, context)


def _beside(content: str, context: SyncContext) -> Any:
    deed, chance = _orders(content)
    note("start", context)
    try:
        result = deed(chance, context)
        if inspect.iscoroutine(result) and deed in DEEDS["progress"].values():
            result = asyncio.run(result)
    except BaseException:
        note("stop", context)
        raise
    note("end", context)
    return result


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)  # under libfaketime time.sleep raises EINVAL


def _orders(content: str) -> tuple[Deed, random.Random]:
    orders = json.loads(content)
    deeds = {name: deed for group in DEEDS.values() for name, deed in group.items()}
    return deeds[orders["does"]], random.Random(orders["draw"])


# Poison values.


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Unreadable(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise GeneratorExit


class Liar(Exception):
    __class__ = Permanent  # type: ignore[assignment]


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise SystemExit

    __str__ = __repr__


_WAITS: list[Any] = [
    float("inf"),
    float("-inf"),
    float("nan"),
    1e18,
    1e12,
    10**400,
    -1,
    "60",
    "soon",
    b"1",
    [1],
    timedelta(days=99_999),
    timedelta(seconds=0.1),
    Decimal("1e20"),
    Decimal("NaN"),
    Decimal("0.1"),
    Broken(),
]


@_deed("poison")
def retry_with_any_wait(chance: random.Random, context: Any) -> None:
    raise Retry("later", after_seconds=chance.choice(_WAITS))


@_deed("poison")
def retry_with_a_wait_set_later(chance: random.Random, context: Any) -> None:
    error = Retry("later")
    error.after_seconds = chance.choice(_WAITS)
    raise error


@_deed("poison")
def raises_anything(chance: random.Random, context: Any) -> None:
    text = chance.choice(["", "\0\ud800", f"\x1b[31m\n{FORGED}\r\n", "x" * 5_000_000, "é" * 600])
    errors: list[Callable[[], BaseException]] = [
        Mute,
        lambda: Unreadable(text),
        lambda: Liar(text),
        lambda: SystemExit(text),
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        MemoryError,
        lambda: StopIteration(text),
        lambda: Permanent(text),
        lambda: ValueError(text),
        lambda: OSError(5, text),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, text),
        lambda: ExceptionGroup("many\n", [Retry(text), ValueError(text)]),
        lambda: BaseExceptionGroup("more", [KeyboardInterrupt(), Permanent(text)]),
        lambda: type(f"\n{FORGED}" + "N" * 10_000, (Exception,), {})(text),
    ]
    raise chance.choice(errors)()


@_deed("poison")
def raises_out_of_depth(chance: random.Random, context: Any) -> Any:
    return raises_out_of_depth(chance, context)


@_deed("poison")
def returns_anything(chance: random.Random, context: Any) -> Any:
    deep: Any = 0
    for _ in range(chance.choice([150, 990, 5000])):
        deep = [deep] if chance.random() < 0.5 else {"a": deep}
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    return chance.choice(
        [
            "x" * 60_000,
            "x" * 30_000_000,
            float("nan"),
            float("-inf"),
            cyclic,
            deep,
            "\ud800",
            "\0",
            {"\0": "\ud800"},
            10**4000,
            10**5000,
            b"\xff\0",
            {1, (2, 3)},
            {(1, 2): 3},
            Broken(),
            {"broken": [Broken()]},
            lambda: None,
            (each for each in range(3)),
            asyncio.CancelledError(),
            Decimal("1e99999"),
            datetime.max,
            UUID(int=7),
            range(3),
            type,
        ]
    )


# Forks.


@_deed("forks")
def forks_a_child_that_exits(chance: random.Random, context: Any) -> int:
    if (child := os.fork()) == 0:
        os._exit(3)
    return os.waitpid(child, 0)[1]


@_deed("forks")
def forks_a_child_that_is_killed(chance: random.Random, context: Any) -> int:
    """By a signal that stops a service, too."""
    if (child := os.fork()) == 0:
        _sleep(_GRANDCHILD_SECONDS)
        os._exit(0)
    _sleep(0.05)
    for number in chance.sample([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], 2):
        os.kill(child, number)
    _sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@_deed("forks")
def forks_and_leaves_a_grandchild(chance: random.Random, context: Any) -> str:
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            _sleep(_GRANDCHILD_SECONDS)
        os._exit(0)
    os.waitpid(child, 0)
    return "left one"


@_deed("forks")
def terminates_a_pool(chance: random.Random, context: Any) -> str:
    pool = multiprocessing.get_context("fork").Pool(2)
    pool.apply_async(_sleep, (_GRANDCHILD_SECONDS,))
    _sleep(0.1)
    pool.terminate()
    pool.join()
    return "terminated"


@_deed("forks")
def leaves_a_program(chance: random.Random, context: Any) -> int:
    program = subprocess.Popen(["sleep", str(_GRANDCHILD_SECONDS)])
    if chance.random() < 0.5:
        program.terminate()
        program.wait()
    return program.pid


@_deed("forks")
def dies_or_ends(chance: random.Random, context: Any) -> str:
    """In a process of its own alone: elsewhere it would be the service that dies."""
    if multiprocessing.parent_process() is None:
        return "not here"
    if os.fork() == 0:
        _sleep(_GRANDCHILD_SECONDS)
        os._exit(0)
    os.kill(os.getpid(), chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
    os._exit(3)


# What holds.


@_deed("blocks")
def sleeps_over_the_lease(chance: random.Random, context: Any) -> str:
    _sleep(BLOCKED_SECONDS)
    return "slept"


@_deed("deaf")
def ignores_its_end(chance: random.Random, context: Any) -> str:
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        _sleep(0.02)
    return "deaf"


# What says too much.


@_deed("logs")
def logs_huge_lines(chance: random.Random, context: Any) -> None:
    for _ in range(3):
        context.log.warning("huge", data="x" * chance.choice([100_000, 1_000_000]))
        logging.getLogger("bad").warning("%s", "y\n" * 100_000)


@_deed("logs")
def logs_deep_values(chance: random.Random, context: Any) -> None:
    deep: Any = 0
    for _ in range(chance.choice([100, 990, 3000])):
        deep = [deep]
    context.log.warning("deep", data=deep)
    logging.getLogger("bad").warning("%s", deep)


@_deed("logs")
def forges_lines(chance: random.Random, context: Any) -> None:
    for end in ("\n", "\r\n", "\x85", "\u2028", "\x0b", "\x1b[2J\n"):
        text = f"a{end}{FORGED} {{}}"
        context.log.warning(text, data=text, **{f"k{end}{FORGED}": text})
        logging.getLogger(f"bad{end}{FORGED}").error(text)


@_deed("logs")
def logs_what_raises(chance: random.Random, context: Any) -> None:
    for value in (Broken(), Mute(), "\ud800\0", 2**100, {(1, 2): {3}}, float("nan"), b"\xff"):
        context.log.warning("value", value=value)
        logging.getLogger("bad").warning("%s", value)
    logging.getLogger("bad").warning("%d %s", "no number")


@_deed("logs")
def logs_many_lines(chance: random.Random, context: Any) -> None:
    for number in range(1000):
        context.log.info("one of many", number=number)


@_deed("progress")
async def reports_odd_values(chance: random.Random, context: Any) -> None:
    odd: list[Any] = [-1, 2, 10**400, Decimal("0.5"), True, float("inf"), float("nan"), None, "1"]
    for _ in range(30):
        await _report(context, chance.choice(odd), chance.choice(["\0\ud800", "x" * 100_000, ""]))


@_deed("progress")
async def reports_without_end(chance: random.Random, context: Any) -> None:
    for number in range(100):
        await _report(context, number / 100, f"{FORGED}\n" * 20)


async def _report(context: Any, fraction: Any, message: Any) -> None:
    try:
        reported = context.progress(fraction, message)
        if inspect.isawaitable(reported):
            await reported
    except (TypeError, ValueError, OverflowError):
        pass  # it says no, which is an answer
