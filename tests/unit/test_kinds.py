"""Declaring handlers, and finding them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tasksvc import handler
from tasksvc.handlers.kinds import HandlersError, load


async def on_loop(content: str, ctx: Any) -> None:
    """A handler."""


def in_thread(content: str, ctx: Any) -> None:
    """A handler."""


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


def test_function_stays_what_it_is() -> None:
    assert handler("x")(in_thread) is in_thread


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


def test_nothing_to_load_is_nothing() -> None:
    assert load([]) == {}


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (lambda content: None, {}, "takes (content, context)"),
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
        handler(**({"kind": "x"} | arguments))(function)

    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_kind_has_one_handler(module: Callable[..., str]) -> None:
    async def other(content: str, ctx: Any) -> None:
        pass

    names = [module("one", handler("x")(on_loop)), module("two", handler("x")(other))]

    with pytest.raises(HandlersError, match="two: the kind 'x' has a handler already"):
        load(names)


def test_same_handler_in_two_modules_is_one(module: Callable[..., str]) -> None:
    function = handler("x")(on_loop)

    assert load([module("one", function), module("two", function)]).keys() == {"x"}


def test_default_kind_is_the_services_own(module: Callable[..., str]) -> None:
    with pytest.raises(HandlersError, match="'default' has a handler already"):
        load([module("one", handler("default")(on_loop))])


def test_module_without_a_handler(module: Callable[..., str]) -> None:
    with pytest.raises(HandlersError, match="TASKSVC_HANDLERS: one has no handler"):
        load([module("one")])


def test_module_that_is_not_there() -> None:
    with pytest.raises(HandlersError, match=r"no\.such can't be imported: ModuleNotFoundError"):
        load(["no.such"])
