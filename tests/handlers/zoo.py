"""Handlers that do what handlers should not, each in every way of running that can take it.

`ZOO` says what becomes of each. tests/faults/test_handler_zoo.py runs them all in one service.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tasksvc import Context, Permanent, Retry, SyncContext, handler

WAYS = ("loop", "thread", "process")

LONG_TEXT = "long " * 12_000


@dataclass(frozen=True)
class Case:
    """One handler in one way of running, and what must become of its task."""

    name: str
    way: str
    error: str | None
    """The type of the error of a failed task; None when it completes."""
    result: Any
    """What it returns as JSON has it; `...` when that does not matter."""
    message: str
    """What the error's message begins with."""
    options: dict[str, Any]
    """Of the task."""

    @property
    def kind(self) -> str:
        return f"{self.name}-{self.way}"


ZOO: list[Case] = []


def beast(
    result: Any = None,
    *,
    error: str | None = None,
    message: str = "",
    ways: tuple[str, ...] = WAYS,
    **options: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a plain function a handler for each of the ways, on the loop within an async def."""

    def tame(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.replace("_", "-")
        for way in ways:
            ZOO.append(Case(name, way, error, result, message, options))
            run = _called(function, way)
            run.__name__ = run.__qualname__ = f"{function.__name__}_in_{way}"
            kind = handler(f"{name}-{way}", run_in=None if way == "loop" else way, max_attempts=1)
            globals()[run.__name__] = kind(run)
        return function

    return tame


def _called(function: Callable[..., Any], way: str) -> Callable[..., Any]:
    async def on_the_loop(content: str, ctx: Context) -> Any:
        answer = function(content, ctx)
        is_awaited = asyncio.iscoroutinefunction(function)
        return await answer if is_awaited else answer

    def beside(content: str, ctx: SyncContext) -> Any:
        return function(content, ctx)

    return on_the_loop if way == "loop" else beside


# What they return.


@dataclass(slots=True)
class Report:
    pages: int
    path: str = field(init=False)


class Color(enum.Enum):
    RED = "red"


class Broken(enum.Enum):
    A = 1

    @property
    def value(self) -> int:
        raise ValueError


Point = namedtuple("Point", "x y")


@beast(
    {
        "dataclass": {"pages": 1},
        "enum": "red",
        "broken": 1,
        "tuple": [1, 2],
        "point": [3, 4],
        "set": [5],
        "time": "2026-11-30T12:00:00Z",
        "id": "00000000-0000-0000-0000-000000000007",
        "price": "1.10",
        "wei": 123456789012345678901234567890,
        "nan": None,
        "bytes": "/w==",
        "text": "\0\u2028\U0001f642",
        "1": "number",
    }
)
def returns_all_sorts(content: str, ctx: Any) -> Any:
    return {
        "dataclass": Report(1),
        "enum": Color.RED,
        "broken": Broken.A,
        "tuple": (1, 2),
        "point": Point(3, 4),
        "set": {5},
        "time": datetime(2026, 11, 30, 12, tzinfo=UTC),
        "id": UUID(int=7),
        "price": Decimal("1.10"),
        "wei": 123456789012345678901234567890,
        "nan": float("nan"),
        "bytes": b"\xff",
        "text": "\0\u2028\U0001f642",
        1: "number",
    }


@beast(LONG_TEXT)
def returns_a_long_text(content: str, ctx: Any) -> str:
    return LONG_TEXT


@beast(error="ResultRefused", message="The result has more than 65536 bytes.")
def returns_too_long_a_text(content: str, ctx: Any) -> str:
    return "x" * 5_000_000


@beast(error="ResultRefused", message="The result is not JSON: function.")
def returns_a_function(content: str, ctx: Any) -> Any:
    return lambda: None


@beast(error="ResultRefused", message="The result is not JSON: generator.")
def returns_a_generator(content: str, ctx: Any) -> Any:
    return (number for number in range(3))


@beast(error="ResultRefused", message="The result is not JSON: a coroutine that")
def returns_a_coroutine(content: str, ctx: Any) -> Any:
    return asyncio.sleep(0)


@beast(error="ResultRefused", message="The result holds itself")
def returns_what_holds_itself(content: str, ctx: Any) -> Any:
    result: list[Any] = []
    result.append(result)
    return result


@beast(error="ResultRefused", message="The result is nested more than 200 deep.")
def returns_a_deep_list(content: str, ctx: Any) -> Any:
    result: list[Any] = []
    for _ in range(400):
        result = [result]
    return result


@beast(error="ResultRefused", message="The result has half of a surrogate pair")
def returns_half_a_character(content: str, ctx: Any) -> str:
    return "\ud800"


# What stands above them.


def _above(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(content: str, ctx: SyncContext) -> list[Any]:
        return ["above", function(content, ctx)]

    return wrapper


def _above_on_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(content: str, ctx: Context) -> list[Any]:
        return ["above", await function(content, ctx)]

    return wrapper


@_above_on_the_loop
@handler("is-decorated-loop", max_attempts=1)
async def is_decorated_on_the_loop(content: str, ctx: Context) -> str:
    return "below"


@_above
@handler("is-decorated-thread", max_attempts=1)
def is_decorated_in_a_thread(content: str, ctx: SyncContext) -> str:
    return "below"


@_above
@handler("is-decorated-process", run_in="process", max_attempts=1)
def is_decorated_in_a_process(content: str, ctx: SyncContext) -> str:
    return "below"


is_a_lambda = handler("is-a-lambda-process", run_in="process", max_attempts=1)(
    lambda content, ctx: "called"
)

ZOO += [Case("is-decorated", way, None, ["above", "below"], "", {}) for way in WAYS]
ZOO.append(Case("is-a-lambda", "process", None, "called", "", {}))


# What they raise.


class Mute(Exception):
    def __str__(self) -> str:
        return self.reason  # type: ignore[attr-defined,no-any-return]


class Fatal(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Interrupting(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Liar(Exception):
    __class__ = Permanent  # type: ignore[assignment]


class Shy(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


class RateLimited(Retry):
    def __init__(self, status: int) -> None:
        self.status = status


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("many", errors)


def _raises(name: str, make: Callable[[], BaseException], error: str, message: str = "") -> None:
    def function(content: str, ctx: Any) -> None:
        raise make()

    function.__name__ = f"raises_{name}"
    beast(error=error, message=message)(function)


_raises("mute", Mute, "Mute", "The exception could not be converted to text.")
_raises("fatal", Fatal, "Fatal", "The exception could not be converted to text.")
_raises(
    "interrupting", Interrupting, "Interrupting", "The exception could not be converted to text."
)
_raises("liar", lambda: Liar("no"), "Liar", "no")
_raises("shy", lambda: Shy("no"), "Shy", "no")
_raises("exit", lambda: SystemExit(0), "SystemExit", "0")
_raises("interrupt", KeyboardInterrupt, "KeyboardInterrupt")
_raises("generator_exit", GeneratorExit, "GeneratorExit")
_raises("canceled", asyncio.CancelledError, "CancelledError")
_raises("memory", MemoryError, "MemoryError")
_raises("nul", lambda: ValueError("a\0\ud800b"), "ValueError", "a?b")
_raises("huge", lambda: ValueError("x" * 5_000_000), "ValueError", "x" * 500)
_raises("group", lambda: group(ValueError("a")), "ExceptionGroup", "many (1 sub-exception): Val")
_raises("permanent_in_a_group", lambda: group(group(Permanent("no"))), "ExceptionGroup", "many (1")
_raises("retry_of_a_text", lambda: Retry(after_seconds="60"), "TypeError", "after_seconds must")  # type: ignore[arg-type]
_raises("retry_for_ever", lambda: Retry(after_seconds=float("inf")), "ValueError", "after_seconds")
_raises("retry_too_long", lambda: Retry(after_seconds=10**400), "ValueError", "after_seconds must")
_raises("retry_of_decimal", lambda: Retry("busy", after_seconds=Decimal(2)), "Retry", "busy")
_raises("retry_of_its_own", lambda: RateLimited(429), "RateLimited", "429")


@beast(error="RecursionError")
def raises_out_of_depth(content: str, ctx: Any) -> None:
    raises_out_of_depth(content, ctx)


@beast(error="RuntimeError")
def raises_stop_iteration(content: str, ctx: Any) -> None:
    if isinstance(ctx, SyncContext) and threading.current_thread() is threading.main_thread():
        raise RuntimeError  # in a process it is an error like any other
    raise StopIteration(5)


@beast(error="ValueError")
def raises_in_a_long_chain(content: str, ctx: Any) -> None:
    error = ValueError()
    for _ in range(2000):
        error, error.__cause__ = ValueError(), error
    raise error


# What they report and log.


@beast("said", ways=("thread", "process"))
def reports_all_sorts(content: str, ctx: Any) -> str:
    for fraction in (-1, 2, 10**400, Decimal("0.5"), True, float("inf")):
        ctx.progress(fraction, "x" * 600 + "\0\ud800")
    for fraction in (None, "0.5", float("nan"), [1], object()):
        with contextlib.suppress(TypeError, ValueError):
            ctx.progress(fraction)
            raise AssertionError(fraction)
    return "said"


@beast("logged")
def logs_all_sorts(content: str, ctx: Any) -> str:
    for value in ("x" * 200_000, b"\xff", "\ud800\0", 2**70, {(1, 2): {3}}, float("nan")):
        ctx.log.info("value", value=value)
    logging.getLogger("zoo").warning("%s", Point(1, 2))
    return "logged"


@beast("printed")
def prints(content: str, ctx: Any) -> str:
    print("zoo", flush=True)
    sys.stderr.write("zoo\n")
    return "printed"


# Processes and threads.


@beast("child\n")
def runs_a_program(content: str, ctx: Any) -> str:
    return subprocess.run(["echo", "child"], capture_output=True, text=True, check=True).stdout


def _square(number: int) -> int:
    return number * number


def _sleep_long() -> None:
    time.sleep(60)


def _put(queue: Any) -> None:
    queue.put(os.getpid())


for _method in ("fork", "spawn", "forkserver"):

    def _starts(content: str, ctx: Any, _method: str = _method) -> int:
        context = multiprocessing.get_context(_method)
        queue = context.SimpleQueue()
        process = context.Process(target=_put, args=(queue,))
        process.start()
        process.join(20)
        return int(queue.get() != os.getpid())

    _starts.__name__ = f"starts_a_process_by_{_method}"
    beast(1)(_starts)


@beast([1, 4, 9], ways=("thread", "process"))
def uses_a_pool(content: str, ctx: Any) -> list[int]:
    with multiprocessing.Pool(2) as pool:
        return pool.map(_square, [1, 2, 3])


@beast([1, 4, 9], ways=("thread", "process"))
def uses_an_executor_of_processes(content: str, ctx: Any) -> list[int]:
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(_square, [1, 2, 3]))


@beast([1, 4, 9])
def uses_an_executor_of_threads(content: str, ctx: Any) -> list[int]:
    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(_square, [1, 2, 3]))


@beast(9, ways=("thread", "process"))
def runs_a_loop_of_its_own(content: str, ctx: Any) -> int:
    async def work() -> int:
        return await asyncio.to_thread(_square, 3)

    return asyncio.run(work())


@beast(-signal.SIGTERM)
def ends_a_forked_process(content: str, ctx: Any) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_sleep_long)
    process.start()
    process.terminate()
    process.join(10)
    return process.exitcode


@beast(error="TimeoutError", ways=("thread", "process"))
def times_out_in_a_pool(content: str, ctx: Any) -> Any:
    with multiprocessing.Pool(1) as pool:
        return pool.apply_async(time.sleep, (60,)).get(timeout=0.2)


@beast(error="BrokenProcessPool", ways=("thread", "process"))
def loses_a_process_of_an_executor(content: str, ctx: Any) -> Any:
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(_kill_self, [signal.SIGKILL, signal.SIGKILL]))


def _kill_self(number: int) -> None:
    os.kill(os.getpid(), number)


@beast("parent")
def returns_twice(content: str, ctx: Any) -> str:
    pid = os.fork()
    if pid == 0:
        return "child"
    os.waitpid(pid, 0)
    return "parent"


@beast("parent")
def raises_in_a_fork(content: str, ctx: Any) -> str:
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the child")
    os.waitpid(pid, 0)
    return "parent"


@beast("logged", ways=("process",))
def logs_in_forks(content: str, ctx: Any) -> str:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_log_much, args=(ctx,)) for _ in range(4)]
    for process in processes:
        process.start()
    _log_much(ctx)
    for process in processes:
        process.join()
    return "logged"


def _log_much(ctx: SyncContext) -> None:
    for _ in range(20):
        ctx.log.info("much", value="x" * 100_000)


@beast(..., ways=("process",))
def leaves_processes(content: str, ctx: Any) -> list[int]:
    program = subprocess.Popen(["sleep", "60"])
    forked = os.fork()
    if forked == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    return [program.pid, forked, os.getpid()]


@beast("left")
def leaves_threads(content: str, ctx: Any) -> str:
    for is_daemon in (True, False):
        threading.Thread(target=time.sleep, args=(0.5,), daemon=is_daemon).start()
    return "left"


@beast(error="ProcessDied", message="Its exit code is 3.", ways=("process",))
def forks_and_dies(content: str, ctx: Any) -> None:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(3)


@beast(error="ProcessDied", message="SIGSEGV has ended it.", ways=("process",))
def crashes_with_a_fork(content: str, ctx: Any) -> None:
    if os.fork() == 0:
        time.sleep(60)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


@beast(error="ProcessDied", ways=("process",))
def closes_all_its_files(content: str, ctx: Any) -> None:
    os.closerange(3, 256)


@beast(error="ProcessDied", message="SIGKILL has ended it.", ways=("process",))
def kills_its_group(content: str, ctx: Any) -> None:
    os.killpg(0, signal.SIGKILL)


@beast("alive", ways=("process",))
def ignores_the_signal_to_end(content: str, ctx: Any) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "alive"


@beast("lifted", ways=("process",))
def lifts_the_limits_of_python(content: str, ctx: Any) -> str:
    sys.setrecursionlimit(10**6)
    sys.set_int_max_str_digits(0)
    return "lifted"


@beast(error="TimedOut", ways=("thread", "process"), timeout_seconds=0.3)
def takes_too_long(content: str, ctx: Any) -> None:
    time.sleep(2)


@beast(error="TimedOut", ways=("process",), timeout_seconds=0.3)
def takes_too_long_with_children(content: str, ctx: Any) -> None:
    with multiprocessing.Pool(1) as pool:
        pool.apply(time.sleep, (60,))


@beast(error="TimedOut", ways=("loop",), timeout_seconds=0.1)
def blocks_the_loop(content: str, ctx: Any) -> str:
    time.sleep(0.3)
    return "done"


# What only a coroutine can do.


@beast(error="TimedOut", ways=("loop",), timeout_seconds=0.1)
async def swallows_its_time_out(content: str, ctx: Context) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    return "done"


@beast(error="ExceptionGroup", message="unhandled errors", ways=("loop",))
async def fails_for_good_in_a_task_group(content: str, ctx: Context) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_fail(Permanent("no")))
        tasks.create_task(asyncio.sleep(60))


async def _fail(error: Exception) -> None:
    raise error


@beast(9, ways=("loop",))
async def uses_all_of_asyncio(content: str, ctx: Context) -> int:
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1) as executor:
        assert await loop.run_in_executor(executor, _square, 2) == 4
    async with asyncio.TaskGroup() as tasks:
        squared = tasks.create_task(asyncio.to_thread(_square, 3))
    return squared.result()


@beast(error="CancelledError", ways=("loop",))
async def cancels_itself(content: str, ctx: Context) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@beast("said", ways=("loop",))
async def reports_all_sorts_on_the_loop(content: str, ctx: Context) -> str:
    for fraction in (-1, 2, 10**400, Decimal("0.5"), float("inf")):
        await ctx.progress(fraction, "x" * 600 + "\0\ud800")  # type: ignore[arg-type]
    for bad in (None, "0.5", float("nan"), [1]):
        with contextlib.suppress(TypeError, ValueError):
            await ctx.progress(bad)  # type: ignore[arg-type]
            raise AssertionError(bad)
    return "said"


@handler("canary", max_attempts=1)
async def canary(content: str, ctx: Context) -> str:
    return "sings"


@handler("cancels-all-tasks-of-the-loop", max_attempts=1)
async def cancels_all_tasks_of_the_loop(content: str, ctx: Context) -> str:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return "done"


@handler("stops-the-loop", max_attempts=1)
async def stops_the_loop(content: str, ctx: Context) -> str:
    asyncio.get_running_loop().stop()
    return "done"


@handler("wait-for-retry", max_attempts=2)
def asks_for_a_retry(content: str, ctx: SyncContext) -> None:
    raise ExceptionGroup("many", [ValueError(), Retry(after_seconds=timedelta(hours=1))])


def kinds() -> Iterator[str]:
    """All kinds of the zoo."""
    return (case.kind for case in ZOO)


assert len({dataclasses.astuple(case)[:2] for case in ZOO}) == len(ZOO)
