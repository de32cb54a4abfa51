"""Handlers of the user's own, by the kind of task that each is for."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from math import inf
from typing import Any, Literal, TypeVar, get_args

from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.handlers import Handler

GROUP = "tasksvc.handlers"
"""The entry points of packages that bring handlers."""

RunIn = Literal["loop", "thread", "process"]

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK = "__tasksvc_kind__"

_MAX_CONCURRENCY = 10_000


class HandlersError(Exception):
    """The handlers can't be used. One line says which, and why."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A function that `handler` was put on."""

    kind: str
    function: Callable[..., Any]
    run_in: RunIn
    timeout_seconds: float | None
    max_attempts: int | None
    retry_base_seconds: float | None
    retry_max_seconds: float | None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a kind where its tasks run. None is the service's own default."""

    handler: Handler
    timeout_seconds: float | None = None
    retry_base_seconds: float | None = None
    retry_max_seconds: float | None = None
    run_in: RunIn = "loop"
    concurrency: int | None = None
    """How many of its tasks run in one process at a time; None: as many as there are places."""

    @property
    def keeps_time(self) -> bool:
        """Whether the handler keeps the time limit itself: it counts from when it really runs."""
        return self.run_in != "loop"

    @classmethod
    def of(cls, declared: Declared, handler: Handler) -> Kind:
        """As it was declared; the handler is what runs its function."""
        return cls(
            handler,
            declared.timeout_seconds,
            declared.retry_base_seconds,
            declared.retry_max_seconds,
            declared.run_in,
            declared.concurrency,
        )


def handler(
    kind: str,
    *,
    run_in: RunIn | None = None,
    timeout_seconds: float | None = None,
    max_attempts: int | None = None,
    retry_base_seconds: float | None = None,
    retry_max_seconds: float | None = None,
    concurrency: int | None = None,
) -> Callable[[Function], Function]:
    """Makes a function the handler of a kind of task; the function stays what it is.

    It is called with the task's content and a `Context` (a `SyncContext` where it is no coroutine
    function). `async def` runs on the event loop and must not hold it; `def` runs in a thread;
    `run_in="process"` is for work that holds the CPU. What it returns, as JSON, is the task's
    result. `concurrency` bounds how many of its tasks run in one process of the service at a time.

    Raises HandlersError: one of the arguments will not do.
    """

    def declare(function: Function) -> Function:
        is_async = inspect.iscoroutinefunction(function)
        where = run_in or ("loop" if is_async else "thread")
        name = f"{function.__module__}.{function.__qualname__}"
        _check(kind, function, name, where, is_async=is_async)
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise HandlersError(f"{name}: timeout_seconds must be above 0.")
        if max_attempts is not None and not 1 <= max_attempts <= 1000:
            raise HandlersError(f"{name}: max_attempts must be from 1 to 1000.")
        _check_backoff(name, retry_base_seconds, retry_max_seconds)
        is_count = isinstance(concurrency, int) and not isinstance(concurrency, bool)
        if concurrency is not None and not (is_count and 1 <= concurrency <= _MAX_CONCURRENCY):
            raise HandlersError(f"{name}: concurrency must be from 1 to {_MAX_CONCURRENCY}.")
        declared = Declared(
            kind,
            function,
            where,
            timeout_seconds,
            max_attempts,
            retry_base_seconds,
            retry_max_seconds,
            concurrency,
        )
        setattr(function, _MARK, declared)
        return function

    return declare


def declared_on(function: Callable[..., Any]) -> Declared:
    """What `handler` was told of this function.

    Raises HandlersError: it was not put on it.
    """
    declared = _declared(function)
    if declared is None:
        raise HandlersError(f"{function!r} has no @handler.")
    return declared


def load(modules: Iterable[str]) -> dict[str, Declared]:
    """The handlers of the modules, and of the packages that are installed, by their kinds.

    Raises HandlersError: a module can't be imported, or two handlers want the same kind.
    """
    found: dict[str, Declared] = {}
    for name in modules:
        _collect(found, _import(name), f"TASKSVC_HANDLERS: {name}")
    for entry in entry_points(group=GROUP):
        _collect(found, _import(entry.value), f"Entry point {entry.name}")
    return found


def _declared(value: object) -> Declared | None:
    mark = getattr(value, _MARK, None)
    return mark if isinstance(mark, Declared) else None


def _import(name: str) -> Any:
    try:
        if ":" in name:
            return pkgutil.resolve_name(name)
        return import_module(name)
    except HandlersError:
        raise
    except Exception as error:  # whatever a module does when it is imported
        reason = " ".join(str(error).split())
        raise HandlersError(
            f"TASKSVC_HANDLERS: {name} can't be imported: {type(error).__name__}: {reason}"
        ) from error


def _collect(found: dict[str, Declared], module: Any, source: str) -> None:
    declared = [each for value in vars(module).values() if (each := _declared(value))]
    if not declared:
        raise HandlersError(f"{source} has no handler.")
    for each in declared:
        other = found.setdefault(each.kind, each)
        if other.function is not each.function or each.kind == DEFAULT_KIND:
            raise HandlersError(f"{source}: the kind {each.kind!r} has a handler already.")


def _check_backoff(name: str, base_seconds: float | None, max_seconds: float | None) -> None:
    base, bound = base_seconds or 0.0, inf if max_seconds is None else max_seconds
    if not 0 <= base <= bound:
        raise HandlersError(f"{name}: 0 <= retry_base_seconds <= retry_max_seconds must hold.")


def _check(
    kind: str, function: Callable[..., Any], name: str, where: str, *, is_async: bool
) -> None:
    if not (isinstance(kind, str) and 0 < len(kind) <= 100 and kind.isprintable()):
        raise HandlersError(f"{name}: a kind is a word of at most 100 characters.")
    if where not in get_args(RunIn):
        raise HandlersError(f"{name}: run_in must be one of: {', '.join(get_args(RunIn))}.")
    if is_async != (where == "loop"):
        raise HandlersError(f"{name}: async def runs on the loop, and only async def does.")
    try:
        inspect.signature(function).bind("content", "context")
    except TypeError:
        raise HandlersError(f"{name}: a handler takes (content, context).") from None
