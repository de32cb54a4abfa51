"""What becomes of what a handler returns."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import math
import re
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest

from tasksvc.handlers.results import MAX_DEPTH, MAX_DIGITS, Encoded, ResultRefused, encode
from tests.harness import ROOT

MAX_BYTES = 1_000_000


@dataclass
class Page:
    number: int
    made_at: datetime.datetime | None = None


@dataclass(slots=True)
class Unset:
    pages: int
    path: str = field(init=False)


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Broken(enum.Enum):
    A = 1

    @property
    def value(self) -> int:
        raise ValueError("secret")


class Shop(msgspec.Struct):
    name: str
    open: bool | None = None


class Typed(TypedDict):
    a: int


Point = collections.namedtuple("Point", "x y")
NOON = datetime.datetime(2026, 11, 30, 12, 0, tzinfo=datetime.UTC)
ID = uuid.UUID(int=5)


class Text(str):
    """Not quite a text."""


class Number(int):
    """Not quite a number."""


class Share(float):
    """Not quite a number."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Page(1, NOON), '{"number":1,"made_at":"2026-11-30T12:00:00Z"}'),
        (Unset(1), '{"pages":1}'),
        (Shop("s"), '{"name":"s","open":null}'),
        (Typed(a=1), '{"a":1}'),
        (Point(1, 2), "[1,2]"),
        ((1, (2,)), "[1,[2]]"),
        ({1}, "[1]"),
        (frozenset({"a"}), '["a"]'),
        (Color.RED, '"red"'),
        (Color.PAIR, "[1,2]"),
        (Level.HIGH, "3"),
        (Broken.A, "1"),
        (NOON, '"2026-11-30T12:00:00Z"'),
        (NOON.replace(tzinfo=None), '"2026-11-30T12:00:00"'),
        (NOON.date(), '"2026-11-30"'),
        (NOON.time(), '"12:00:00"'),
        (datetime.timedelta(minutes=1.5), '"PT90S"'),
        (ID, f'"{ID}"'),
        (Decimal("1.10"), '"1.10"'),
        (2**70, str(2**70)),
        ({"wei": -(10**40)}, f'{{"wei":{-(10**40)}}}'),
        (10 ** (MAX_DIGITS - 1), str(10 ** (MAX_DIGITS - 1))),
        (b"\xff\x00", '"/wA="'),
        (bytearray(b"x"), '"eA=="'),
        (math.nan, "null"),
        ([math.inf, -math.inf], "[null,null]"),
        ({1: "a", 2.5: "b", ID: "c"}, f'{{"1":"a","2.5":"b","{ID}":"c"}}'),
        ("\0", '"\\u0000"'),
        ("\u2028 é 🙂", '"\u2028 é 🙂"'),
        ([Text("x"), Number(4), Share(1.5), True], '["x",4,1.5,true]'),
        ({Text("k"): None}, '{"k":null}'),
        (collections.OrderedDict(a=1), '{"a":1}'),
        (collections.Counter("aa"), '{"a":2}'),
        (nested(MAX_DEPTH), "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH),
        ([[]] * 1000, "[" + ",".join(["[]"] * 1000) + "]"),
        (["[" * 1000], '["' + "[" * 1000 + '"]'),
        ("1" * 10_000, '"' + "1" * 10_000 + '"'),
        (Encoded("[1]"), "[1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_result_as_json(result: Any, text: str) -> None:
    assert encode(result, MAX_BYTES) == text


class Raises:
    """Looks like a dataclass, until it is looked at."""

    @property
    def __dataclass_fields__(self) -> Any:
        raise ValueError("secret")


def holds_itself() -> list[Any]:
    result: list[Any] = []
    result.append({"again": result})
    return result


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "The result is not JSON: object."),
        ({"a": [object()]}, "The result is not JSON: object."),
        (ValueError("secret"), "The result is not JSON: ValueError."),
        (Path("secret"), "The result is not JSON: PosixPath."),
        (iter([1]), "The result is not JSON: list_iterator."),
        (1j, "The result is not JSON: complex."),
        (Page, "The result is not JSON: type."),
        (lambda: 1, "The result is not JSON: function."),
        ({(1, 2): 3}, "The result is not JSON: tuple as a key."),
        ({None: 1}, "The result is not JSON: NoneType as a key."),
        (Raises(), "The result is not JSON: Raises."),
        ("\ud800", "The result has half of a surrogate pair, which is no text."),
        ({"\ud800": 1}, "The result has half of a surrogate pair, which is no text."),
        (nested(MAX_DEPTH + 1), "The result is nested more than 200 deep."),
        (nested(100_000), "The result holds itself, or is nested too deep."),
        (holds_itself(), "The result holds itself, or is nested too deep."),
        (10**5000, "The result is not JSON: ValueError."),
        ("x" * MAX_BYTES, "The result has more than 1000000 bytes."),
        ("é" * (MAX_BYTES // 2), "The result has more than 1000000 bytes."),
        (Encoded('"' + "é" * (MAX_BYTES // 2) + '"'), "The result has more than 1000000 bytes."),
        (["x" * 1000] * 1000, "The result has more than 1000000 bytes."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_result_that_is_refused(result: Any, reason: str) -> None:
    with pytest.raises(ResultRefused) as raised:
        encode(result, MAX_BYTES)

    assert str(raised.value).startswith(reason)
    assert "secret" not in str(raised.value)


@contextmanager
def lifted_limits() -> Iterator[None]:
    """What a module with deep recursions and large numbers does."""
    depth, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    sys.setrecursionlimit(10**6)
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.setrecursionlimit(depth)
        sys.set_int_max_str_digits(digits)


def test_limits_hold_where_a_module_has_lifted_pythons() -> None:
    with lifted_limits():
        for result in (holds_itself(), nested(100_000), 10**MAX_DIGITS, [1, {"a": -(10**9999)}]):
            with pytest.raises(ResultRefused):
                encode(result, MAX_BYTES)
        assert sys.getrecursionlimit() == 10**6
        assert len(encode(10 ** (MAX_DIGITS - 1), MAX_BYTES)) == MAX_DIGITS


def test_coroutine_that_nobody_awaits_is_told_so_and_closed() -> None:
    async def work() -> None:
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ResultRefused, match="a coroutine that the handler did not await"):
            encode(work(), MAX_BYTES)


def test_what_is_kept_can_be_read() -> None:
    text = encode({"a": 2**70, "b": [1.5, None, "\0"]}, MAX_BYTES)

    assert json.loads(text) == {"a": 2**70, "b": [1.5, None, "\0"]}


class Named(NamedTuple):
    x: int
    y: int


class Plain(msgspec.Struct, omit_defaults=True):
    name: str
    open: bool | None = None


@dataclass
class Sheet:
    number: int


NAMES = {
    "Point": Named,
    "Page": Sheet,
    "Shop": Plain,
    "Color": Color,
    "Decimal": Decimal,
    "UUID": uuid.UUID,
    "UTC": datetime.UTC,
} | {name: getattr(datetime, name) for name in ("date", "datetime", "time", "timedelta")}

ROWS = re.findall(
    r"^\| `(.+?)`(?: \(.*?\))? \| `(.+)` \|$",
    (ROOT / "docs/handlers.md").read_text("utf-8").partition("| returned |")[2],
    re.MULTILINE,
)


@pytest.mark.parametrize(("returned", "result"), ROWS)
def test_table_of_the_docs(returned: str, result: str) -> None:
    assert encode(eval(returned, dict(NAMES)), MAX_BYTES) == result


def test_table_of_the_docs_is_read() -> None:
    assert len(ROWS) == 18
