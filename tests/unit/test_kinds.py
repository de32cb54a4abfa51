"""Declaring handlers, and finding them."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from math import inf, nan
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tasksvc import handler
from tasksvc.handlers.kinds import HandlersError, KindConfig, load


async def on_loop(content: str, ctx: Any) -> None:
    """A handler."""


def in_thread(content: str, ctx: Any) -> None:
    """A handler."""


def yields(content: str, ctx: Any) -> Iterator[int]:
    """Looks like a handler, and would never run."""
    yield 1


async def yields_on_the_loop(content: str, ctx: Any) -> AsyncIterator[int]:
    """The same."""
    yield 1


class Methods:
    """What is no function of a module."""

    def plain(self, content: str, ctx: Any) -> None:
        """A method."""

    @staticmethod
    def static(content: str, ctx: Any) -> None:
        """A method."""

    @classmethod
    def of_the_class(cls, content: str, ctx: Any) -> None:
        """A method."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a module with these functions in it; its name."""

    def make(name: str, *functions: Any) -> str:
        made = ModuleType(name)
        for number, function in enumerate(functions):
            setattr(made, f"function_{number}", function)
        monkeypatch.setitem(sys.modules, name, made)
        return name

    return make


def fresh(function: Any) -> Any:
    """Another function that does the same: one can be declared once."""
    return FunctionType(function.__code__, {}, function.__name__, closure=function.__closure__)


def test_function_stays_what_it_is() -> None:
    function = fresh(in_thread)

    assert handler("x")(function) is function


def test_loaded_by_kind_with_all_that_was_declared() -> None:
    found = load(["tests.handlers.shop"])

    greet = found["greet"]
    assert (greet.run_in, greet.timeout_seconds, greet.max_attempts) == ("loop", 30, 5)
    assert (greet.retry_base_seconds, greet.retry_max_seconds) == (None, None)
    assert found["whereabouts-thread"].run_in == "thread"
    assert found["whereabouts-process"].run_in == "process"


@pytest.mark.parametrize(("base", "bound"), [(2, 8), (2, None), (None, 8), (0, 0)])
def test_backoff_of_a_kind(
    module: Callable[..., str], base: float | None, bound: float | None
) -> None:
    async def function(content: str, ctx: Any) -> None:
        pass

    handler("x", retry_base_seconds=base, retry_max_seconds=bound)(function)

    declared = load([module("m", function)])["x"]
    assert (declared.retry_base_seconds, declared.retry_max_seconds) == (base, bound)


@pytest.mark.parametrize("value", [2, 2.0, Decimal(2), timedelta(seconds=2)])
def test_times_of_a_kind_are_numbers_or_timedeltas(module: Callable[..., str], value: Any) -> None:
    function = handler("x", timeout_seconds=value, retry_max_seconds=value)(fresh(in_thread))

    declared = load([module("m", function)])["x"]
    assert (declared.timeout_seconds, declared.retry_max_seconds) == (2.0, 2.0)
    assert type(declared.timeout_seconds) is float


def test_concurrency_of_a_kind(module: Callable[..., str]) -> None:
    function = handler("x", concurrency=4)(fresh(in_thread))

    declared = load([module("m", function)])["x"]
    assert KindConfig.of(declared, lambda claim: None).concurrency == 4  # type: ignore[arg-type,return-value]


def test_nothing_to_load_is_nothing() -> None:
    assert load([]) == {}


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (lambda content: None, {}, "takes (content, context)"),
        (yields, {}, "must return its result, and not yield"),
        (yields_on_the_loop, {}, "must return its result, and not yield"),
        (yields, {"run_in": "process"}, "must return its result, and not yield"),
        (Methods.plain, {}, "no method"),
        (Methods.static, {}, "no method"),
        (Methods.of_the_class, {}, "no method"),
        (Methods().plain, {}, "no method"),
        (staticmethod(in_thread), {}, "must be a function"),
        (classmethod(in_thread), {}, "must be a function"),
        (Methods, {}, "must be a function"),
        (5, {}, "must be a function"),
        (max, {}, "takes (content, context)"),
        *(
            (in_thread, {argument: value}, argument)
            for argument in ("timeout_seconds", "retry_base_seconds", "retry_max_seconds")
            for value in (inf, -inf, nan, 1e15, 10**400, "60", b"60", True, [1], timedelta.max)
        ),
        *(
            (in_thread, {argument: value}, f"{argument} must be from 1 to")
            for argument in ("max_attempts", "concurrency")
            for value in (0, -1, 10**9, 1.5, "3", True, Decimal(3))
        ),
        (lambda a, b, c: None, {}, "takes (content, context)"),
        (lambda *, content, ctx: None, {}, "takes (content, context)"),
        (in_thread, {"run_in": "loop"}, "async def runs on the loop"),
        (on_loop, {"run_in": "thread"}, "async def runs on the loop"),
        (on_loop, {"run_in": "process"}, "async def runs on the loop"),
        (in_thread, {"run_in": "moon"}, "run_in must be one of: loop, thread, process"),
        (in_thread, {"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        (in_thread, {"max_attempts": 0}, "max_attempts must be from 1 to 1000"),
        (in_thread, {"retry_base_seconds": -1}, "0 <= retry_base_seconds <= retry_max_seconds"),
        (in_thread, {"retry_max_seconds": -1}, "0 <= retry_base_seconds <= retry_max_seconds"),
        (
            in_thread,
            {"retry_base_seconds": 2, "retry_max_seconds": 1},
            "0 <= retry_base_seconds <= retry_max_seconds",
        ),
        (in_thread, {"kind": ""}, "a kind is a word"),
        (in_thread, {"kind": "x" * 101}, "a kind is a word"),
        (in_thread, {"kind": "a\nb"}, "a kind is a word"),
        (in_thread, {"kind": 5}, "a kind is a word"),
    ],
)
def test_declaration_that_will_not_do_is_one_line(
    function: Any, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(HandlersError) as raised:
        handler(**({"kind": "x"} | arguments))(
            fresh(function) if function in (in_thread, on_loop) else function
        )

    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_kind_has_one_handler(module: Callable[..., str]) -> None:
    async def other(content: str, ctx: Any) -> None:
        pass

    names = [module("one", handler("x")(fresh(on_loop))), module("two", handler("x")(other))]

    with pytest.raises(HandlersError, match="two: the kind 'x' has a handler already"):
        load(names)


def test_same_handler_in_two_modules_is_one(module: Callable[..., str]) -> None:
    function = handler("x")(fresh(on_loop))

    assert load([module("one", function), module("two", function)]).keys() == {"x"}


def test_default_kind_is_the_services_own(module: Callable[..., str]) -> None:
    with pytest.raises(HandlersError, match="'default' has a handler already"):
        load([module("one", handler("default")(fresh(on_loop)))])


def test_module_without_a_handler(module: Callable[..., str]) -> None:
    with pytest.raises(HandlersError, match="TASKSVC_HANDLERS: one has no handler"):
        load([module("one")])


def test_module_that_is_not_there() -> None:
    with pytest.raises(HandlersError, match=r"no\.such can't be imported: ModuleNotFoundError"):
        load(["no.such"])


def test_module_that_ends_the_program_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_import.py").write_text("import sys; sys.exit('usage: me')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        HandlersError, match=r"exits_at_import can't be imported: SystemExit: usage"
    ):
        load(["exits_at_import"])


def test_error_of_an_import_tells_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "raise ValueError('no answer from postgresql://me:secret@host/db')"
    (tmp_path / "fails_at_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(HandlersError) as raised:
        load(["fails_at_import"])

    assert "no answer from postgresql://***@host/db" in str(raised.value)
    assert "secret" not in str(raised.value)


def loud(function: Any) -> Any:
    """A decorator as it should be."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return "loud", function(*arguments)

    return wrapper


def loud_on_the_loop(function: Any) -> Any:
    """A decorator that makes all it gets async def."""

    @functools.wraps(function)
    async def wrapper(*arguments: Any) -> Any:
        return "loud", await function(*arguments)

    return wrapper


def nameless(function: Any) -> Any:
    """A decorator without functools.wraps."""
    return lambda content, ctx: function(content, ctx)


def test_decorator_above_is_part_of_the_handler(module: Callable[..., str]) -> None:
    function = loud(handler("x")(fresh(in_thread)))

    declared = load([module("m", function)])["x"]
    assert declared.function is function
    assert (declared.module, declared.name) == ("m", "function_0")


def test_name_of_the_function_itself_goes_before_another_of_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Any = ModuleType("m")
    function = handler("x")(fresh(in_thread))
    made.above, made.in_thread = loud(function), function
    monkeypatch.setitem(sys.modules, "m", made)

    assert load(["m"])["x"].name == "in_thread"


def test_decorator_above_that_makes_it_async_is_refused(module: Callable[..., str]) -> None:
    function = loud_on_the_loop(handler("x")(fresh(in_thread)))

    with pytest.raises(HandlersError, match="a decorator makes it async def; put @handler above"):
        load([module("m", function)])


def test_decorator_above_that_hides_the_handler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = ModuleType("hides")
    function, other = fresh(in_thread), fresh(on_loop)
    function.__module__ = "hides"
    function.__qualname__ = "hidden"
    made.function, made.other = nameless(handler("x")(function)), handler("y")(other)
    monkeypatch.setitem(sys.modules, "hides", made)

    with pytest.raises(HandlersError, match=r"hides\.hidden: a decorator above @handler hides it"):
        load(["hides"])


def test_decorator_below_may_give_it_more_arguments(module: Callable[..., str]) -> None:
    def with_more(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(content: str, ctx: Any) -> Any:
            return function(content, ctx, "more")

        return wrapper

    @handler("x")
    @with_more
    def function(content: str, ctx: Any, more: str) -> str:
        return more

    assert load([module("m", function)])["x"].function("content", None) == "more"


def test_function_has_one_kind() -> None:
    function = handler("x")(fresh(in_thread))

    with pytest.raises(HandlersError, match="it has a @handler already, for 'x'"):
        handler("y")(function)


def test_value_that_can_not_be_looked_at_yet_is_no_handler(module: Callable[..., str]) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not within a request")

    assert load([module("m", Lazy(), handler("x")(fresh(in_thread)))]).keys() == {"x"}
