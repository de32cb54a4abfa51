"""Handlers that do what their content says, however odd that is: tests/faults/test_canary.py draws
it."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from tasksvc import Context, Permanent, Retry, SyncContext, handler


class Odd(NamedTuple):
    """Stands for a value that can't be sent, by its name in ODD."""

    name: str


class Failure(NamedTuple):
    """Stands for an error: the name of its class, and what the class is called with."""

    name: str
    argument: Any
    members: tuple[Any, ...] = ()
    """For a group: failures."""


class Plan(NamedTuple):
    """What one run does, in this order; errors of reports and lines are left aside."""

    progress: list[Any]
    lines: list[Any]
    failure: Failure | None
    result: Any


def written(plan: Plan) -> str:
    """As the content of a task."""
    return base64.b64encode(pickle.dumps(plan)).decode()


@dataclass(slots=True)
class Unset:
    here: int
    away: int = field(init=False)


class Broken(Enum):
    A = 1

    @property
    def value(self) -> int:
        raise ValueError


class Hostile:
    """Raises whatever it is asked."""

    def __init__(self, error: type[BaseException]) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "error")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise object.__getattribute__(self, "error")

    def __hash__(self) -> int:
        return 1


def _cycle() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


def _deep() -> Any:
    value: Any = 1
    for _ in range(3_000):
        value = [value]
    return value


ODD: dict[str, Callable[[], Any]] = {
    "object": object,
    "function": lambda: _deep,
    "generator": lambda: (each for each in ()),
    "class": lambda: Unset,
    "unset": lambda: Unset(1),
    "broken": lambda: Broken.A,
    "cycle": _cycle,
    "deep": _deep,
    "raises": lambda: Hostile(ValueError),
    "recurses": lambda: Hostile(RecursionError),
    "exits": lambda: Hostile(SystemExit),
    "interrupts": lambda: Hostile(KeyboardInterrupt),
    "large": lambda: "x" * 1_000_000,
    "digits": lambda: 10**5_000,
}


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Textless(Exception):
    def __str__(self) -> Any:
        return 5


class Shy(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


FAILURES: dict[str, Callable[[Any], BaseException]] = {
    "ValueError": ValueError,
    "KeyError": KeyError,
    "OSError": lambda argument: OSError(5, argument),
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "TimeoutError": TimeoutError,
    "MemoryError": MemoryError,
    "Permanent": Permanent,
    "Retry": lambda argument: Retry("again", after_seconds=argument),
    "Retry that was changed": lambda argument: _changed(argument),
    "Mute": Mute,
    "Textless": Textless,
    "Shy": Shy,
}


def _changed(argument: Any) -> Retry:
    retry = Retry("again")
    retry.after_seconds = argument
    return retry


def _made(value: Any) -> Any:
    """The value, with what stands for others replaced by them."""
    if isinstance(value, Odd):
        return ODD[value.name]()
    if type(value) in (list, tuple):
        return type(value)(map(_made, value))
    if type(value) is dict:
        return {key: _made(each) for key, each in value.items()}
    return value


def _error(failure: Failure) -> BaseException:
    if failure.members:
        return BaseExceptionGroup("many", [_error(each) for each in failure.members])
    return FAILURES[failure.name](_made(failure.argument))


def _end(plan: Plan) -> Any:
    if plan.failure is not None:
        raise _error(plan.failure)
    return _made(plan.result)


def _log(plan: Plan, ctx: Any) -> None:
    for line in plan.lines:
        with suppress(Exception):
            ctx.log.info("drawn", value=_made(line))


@handler("drawn-loop", max_attempts=2)
async def on_the_loop(content: str, ctx: Context) -> Any:
    plan = pickle.loads(base64.b64decode(content))
    for fraction in plan.progress:
        with suppress(Exception):
            await ctx.progress(_made(fraction), _made(fraction))
    _log(plan, ctx)
    return _end(plan)


def _beside(content: str, ctx: SyncContext) -> Any:
    plan = pickle.loads(base64.b64decode(content))
    for fraction in plan.progress:
        with suppress(Exception):
            ctx.progress(_made(fraction), _made(fraction))
    _log(plan, ctx)
    return _end(plan)


@handler("drawn-thread", max_attempts=2)
def in_a_thread(content: str, ctx: SyncContext) -> Any:
    return _beside(content, ctx)


@handler("drawn-process", run_in="process", max_attempts=2)
def in_a_process(content: str, ctx: SyncContext) -> Any:
    return _beside(content, ctx)


@handler("canary", max_attempts=1)
async def canary(content: str, ctx: Context) -> str:
    return "sings"
