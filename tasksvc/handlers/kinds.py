"""Handlers of the user's own, by the kind of task that each is for."""

from __future__ import annotations

import inspect
import pkgutil
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args

from tasksvc import logs
from tasksvc.domain.retry import describe
from tasksvc.domain.seconds import MAX_SECONDS, to_seconds
from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.handlers import Handler

GROUP = "tasksvc.handlers"
"""The entry points of packages that bring handlers."""

MAX_ATTEMPTS = 1000
MAX_CONCURRENCY = 10_000

RunIn = Literal["loop", "thread", "process"]

Function = TypeVar("Function", bound=Callable[..., Any])

_CREDENTIALS = re.compile(r"://[^/@\s]*@")
"""Of a URL. A module that fails at its import may say the one of its database."""

_MARK = "__tasksvc_kind__"

_marks: list[weakref.ref[HandlerSpec]] = []
"""All that were made, while their functions are there."""


class HandlersError(Exception):
    """The handlers can't be used. One line says which, and why."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class HandlerSpec:
    """A function with the decorator `handler`, and the decorator's arguments."""

    kind: str
    function: Callable[..., Any]
    """What runs: after `load`, what the module holds under that name, with the decorators that
    stand above `@handler`."""
    run_in: RunIn
    timeout_seconds: float | None = None
    max_attempts: int | None = None
    retry_base_seconds: float | None = None
    retry_max_seconds: float | None = None
    concurrency: int | None = None
    module: str = ""
    """Where `load` has found it, for another process: `package.module` …"""
    name: str = ""
    """… and what it is called there."""


@dataclass(frozen=True, slots=True)
class KindConfig:
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
    def of(cls, declared: HandlerSpec, handler: Handler) -> KindConfig:
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
    timeout_seconds: float | timedelta | None = None,
    max_attempts: int | None = None,
    retry_base_seconds: float | timedelta | None = None,
    retry_max_seconds: float | timedelta | None = None,
    concurrency: int | None = None,
) -> Callable[[Function], Function]:
    """Makes a function the handler of a kind of task; the function stays what it is.

    It is called with the task's content and a `Context` (a `SyncContext` where it is no coroutine
    function). `async def` runs on the event loop and must not hold it; `def` runs in a thread;
    `run_in="process"` is for work that holds the CPU. What it returns, as JSON, is the task's
    result. `concurrency` bounds how many of its tasks run in one process of the service at a time.

    Times are a number of seconds or a timedelta, at most 31,622,400 seconds (366 days).

    Raises HandlersError: one of the arguments will not do, or it is no function that can run.
    """

    def declare(function: Function) -> Function:
        name = _named(function)
        where = run_in or ("loop" if _is_async(function) else "thread")
        _check(kind, function, name, where)
        timeout = _seconds(name, "timeout_seconds", timeout_seconds)
        if timeout is not None and not timeout > 0:
            raise HandlersError(f"{name}: timeout_seconds must be above 0.")
        base = _seconds(name, "retry_base_seconds", retry_base_seconds)
        bound = _seconds(name, "retry_max_seconds", retry_max_seconds)
        if not 0 <= (base or 0.0) <= (MAX_SECONDS if bound is None else bound):
            raise HandlersError(f"{name}: 0 <= retry_base_seconds <= retry_max_seconds must hold.")
        if (other := _declared(function)) is not None and other.function is function:
            raise HandlersError(f"{name}: it has a @handler already, for {other.kind!r}.")
        _check_count(name, "max_attempts", max_attempts, MAX_ATTEMPTS)
        _check_count(name, "concurrency", concurrency, MAX_CONCURRENCY)
        declared = HandlerSpec(
            kind, function, where, timeout, max_attempts, base, bound, concurrency
        )
        try:
            setattr(function, _MARK, declared)
        except AttributeError:
            raise HandlersError(f"{name}: a handler must be a function.") from None
        _marks.append(weakref.ref(declared, _marks.remove))
        return function

    return declare


def declared_on(function: Callable[..., Any]) -> HandlerSpec:
    """Returns the arguments of the decorator `handler`.

    Raises HandlersError: it was not put on it.
    """
    declared = _declared(function)
    if declared is None:
        raise HandlersError(f"{function!r} has no @handler.")
    return declared


def load(modules: Iterable[str]) -> dict[str, HandlerSpec]:
    """The handlers of the modules, and of the packages that are installed, by their kinds.

    To be called before a loop runs: a module may use `asyncio.run` when it is imported.

    Raises HandlersError: a module can't be imported, two handlers want the same kind, or one can't
    run as it stands in its module.
    """
    found: dict[str, HandlerSpec] = {}
    for name in modules:
        _collect(found, name, f"TASKSVC_HANDLERS: {name}")
    for entry in entry_points(group=GROUP):
        _collect(found, entry.value, f"Entry point {entry.name}: {entry.value}")
    logs.keep()  # a module may have configured logging
    return found


def _declared(value: object) -> HandlerSpec | None:
    try:
        mark = getattr(value, _MARK, None)
    except Exception:  # an object that is not ready yet, like a request outside of a request
        return None
    return mark if isinstance(mark, HandlerSpec) else None


def _import(name: str, source: str) -> Any:
    try:
        if ":" in name:
            return pkgutil.resolve_name(name)
        return import_module(name)
    except HandlersError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a module does
        said = describe(error, attempt=0)
        reason = _CREDENTIALS.sub("://***@", " ".join(said["message"].split()))
        raise HandlersError(f"{source} can't be imported: {said['type']}: {reason}") from error


def _collect(found: dict[str, HandlerSpec], name: str, source: str) -> None:
    module = _import(name, source)
    declared = _in_namespace(module, name)
    if not declared:
        raise HandlersError(f"{source} has no handler.")
    for each in declared:
        other = found.setdefault(each.kind, each)
        if other.function is not each.function or each.kind == DEFAULT_KIND:
            raise HandlersError(f"{source}: the kind {each.kind!r} has a handler already.")


def _in_namespace(module: Any, path: str) -> list[HandlerSpec]:
    """The handlers of a module, each with what stands there under its name: decorators above
    `@handler` are part of it. `path` is what leads to the module."""
    names: dict[int, list[str]] = {}
    marks: dict[int, HandlerSpec] = {}
    for name, value in list(vars(module).items()):
        if (mark := _declared(value)) is not None:
            marks[id(mark)] = mark
            names.setdefault(id(mark), []).append(name)
    found = []
    for key, mark in marks.items():
        # A function may stand there a second time, with another decorator and under another name.
        own = getattr(mark.function, "__name__", "")
        name = own if own in names[key] else names[key][0]
        function = vars(module)[name]
        if function is not mark.function:
            _check_shape(_named(function), function, mark.run_in, is_outer=True)
        found.append(replace(mark, function=function, module=path, name=name))
    for reference in list(_marks):
        mark = reference()
        if mark is not None and id(mark) not in marks and _is_of(mark.function, module):
            raise HandlersError(
                f"{_named(mark.function)}: a decorator above @handler hides it. "
                "It needs functools.wraps, or @handler above it."
            )
    return found


def _is_of(function: Any, module: Any) -> bool:
    """Whether it was defined at the top of the module."""
    is_there = getattr(function, "__module__", None) == getattr(module, "__name__", "")
    return is_there and "." not in getattr(function, "__qualname__", ".")


def _named(function: Any) -> str:
    """How errors name it."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return f"{module}.{name}" if module else str(name)


def _is_async(function: Any) -> bool:
    if inspect.iscoroutinefunction(function):
        return True
    return callable(function) and inspect.iscoroutinefunction(type(function).__call__)


def _seconds(name: str, argument: str, value: object) -> float | None:
    try:
        return None if value is None else to_seconds(value, argument)
    except (TypeError, ValueError) as error:
        raise HandlersError(f"{name}: {error}") from None


def _check_count(name: str, argument: str, value: object, most: int) -> None:
    if value is None:
        return
    if type(value) is not int or not 1 <= value <= most:
        raise HandlersError(f"{name}: {argument} must be from 1 to {most}.")


def _check(kind: str, function: Callable[..., Any], name: str, where: str) -> None:
    if not (isinstance(kind, str) and 0 < len(kind) <= 100 and kind.isprintable()):
        raise HandlersError(f"{name}: a kind is a word of at most 100 characters.")
    if where not in get_args(RunIn):
        raise HandlersError(f"{name}: run_in must be one of: {', '.join(get_args(RunIn))}.")
    _check_shape(name, function, where, is_outer=False)
    if _is_async(function) != (where == "loop"):
        raise HandlersError(f"{name}: async def runs on the loop, and only async def does.")


def _check_shape(name: str, function: Any, where: str, *, is_outer: bool) -> None:
    """Refuses what can be seen not to run."""
    if isinstance(function, staticmethod | classmethod | type) or not callable(function):
        raise HandlersError(f"{name}: a handler must be a function.")
    qualified = getattr(function, "__qualname__", "")
    if "." in qualified.rpartition("<locals>.")[2]:
        raise HandlersError(f"{name}: a handler must be a function of a module, and no method.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlersError(f"{name}: a handler must return its result, and not yield.")
    if is_outer and where != "loop" and _is_async(function):
        raise HandlersError(f"{name}: a decorator makes it async def; put @handler above it.")
    try:
        inspect.signature(function, follow_wrapped=False).bind("content", "context")
    except (TypeError, ValueError):
        raise HandlersError(f"{name}: a handler takes (content, context).") from None
