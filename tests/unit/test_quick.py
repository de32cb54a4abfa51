"""The quick reader agrees with the schema that it is made of."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from marshmallow import Schema, fields
from marshmallow.validate import OneOf

from tasksvc.domain.seconds import MAX_SECONDS
from tasksvc.domain.task import Options
from tasksvc.web.problems import Problem
from tasksvc.web.schemas.documents import load
from tasksvc.web.schemas.quick_reader import Reader
from tasksvc.web.schemas.tasks import (
    CreateRequest,
    TaskCreate,
    quick_order,
)

SCHEMA = TaskCreate()

GOOD: dict[str, list[Any]] = {
    "content": ["", "x", "ä🙂", "x" * 1000],
    "kind": ["x", "x" * 100, "ä"],
    "max_attempts": [1, 1000],
    "timeout_seconds": [0.001, 1, MAX_SECONDS],
    "delay_seconds": [0, 0.5, 7, MAX_SECONDS],
    "run_at": [
        "2030-01-01T00:00:00Z",
        "2030-01-01T00:00:00.123456+00:00",
        "2030-01-01T02:00:00+02:00",
        "2030-01-01 02:00:00.5-02:30",
        "2030-01-01T00:00:00",
        "2030-01-01",
    ],
    "expires_at": [
        "2030-01-01T00:00:00z",
        "2030-01-01t00:00:00.1234567Z",
        "2030-01-01T00:00:00+14:00",
    ],
    "priority": ["high", "normal", "low"],
    "queue": ["a", ".a", "_a.b-c", "x" * 100],
    "unique_key": ["x", "x" * 255],
    "retry_base_seconds": [0, 1.5, 100],
    "retry_max_seconds": [0, 2, MAX_SECONDS],
}
"""What the quick reader takes."""

OTHERS: dict[str, list[Any]] = {
    "content": [1, "\0", [], {}],
    "kind": ["", "x" * 101, 5, "a\0"],
    "max_attempts": [0, 1001, -1, 1.0, 1.5, "5", True, 10**30],
    "timeout_seconds": [0, -1, MAX_SECONDS + 1, "5", "nan", True, 10**400],
    "delay_seconds": [-0.1, MAX_SECONDS * 2, "1", False],
    "run_at": [
        "2030-01-01T00:00Z",
        "2030-02-30T00:00:00Z",
        "2030-01-01T00:00:00+0000",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        1893456000,
        "",
    ],
    "expires_at": ["never", {}],
    "priority": ["urgent", "HIGH", "", 1, [], {}],
    "queue": ["", ".", "..", "a b", "x" * 101, "a\n", "ä", 1],
    "unique_key": ["", "x" * 256, "\0", 1],
    "retry_base_seconds": [-1, MAX_SECONDS + 1, "1"],
    "retry_max_seconds": [-1, True],
    "other": [1],
}
"""What it leaves to the schema, whatever that says."""


def by_schema(body: bytes) -> CreateRequest:
    order: CreateRequest = load(SCHEMA, body)
    return order


def quickly(body: bytes) -> CreateRequest | None:
    return quick_order(body)


def test_it_is_made_of_every_field_and_option() -> None:
    assert GOOD.keys() == SCHEMA.fields.keys() == {"content", *Options.__struct_fields__}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values]
)
def test_good_values_are_read_quickly(name: str, value: Any) -> None:
    body = json.dumps({"content": "x", name: value}).encode()

    assert quickly(body) == by_schema(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in OTHERS.items() for value in values] + [("content", None)],
)
def test_others_are_left_to_the_schema(name: str, value: Any) -> None:
    body = json.dumps({"content": "x", name: value}).encode()

    assert quickly(body) is None


@pytest.mark.parametrize("name", Options.__struct_fields__)
def test_null_is_not_given(name: str) -> None:
    body = json.dumps({"content": "x", name: None}).encode()

    assert quickly(body) == by_schema(body) == CreateRequest("x")


@pytest.mark.parametrize(
    "options",
    [
        {"run_at": "2030-01-01T00:00:00Z", "delay_seconds": 0},
        {"retry_base_seconds": 2, "retry_max_seconds": 1.5},
    ],
)
def test_contradictions_are_left_to_the_schema(options: dict[str, Any]) -> None:
    body = json.dumps({"content": "x", **options}).encode()

    assert quickly(body) is None
    with pytest.raises(Problem):
        by_schema(body)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_about_any_mix(seed: int) -> None:
    chance = random.Random(seed)
    taken = 0
    for _ in range(500):
        document: dict[str, Any] = {}
        for name in chance.sample(list(GOOD), chance.randint(0, len(GOOD))):
            values = OTHERS[name] if chance.random() < 0.03 else GOOD[name]
            document[name] = chance.choice(values)
        body = json.dumps(document, ensure_ascii=chance.random() < 0.5).encode()
        found = quickly(body)
        if found is not None:
            taken += 1
            assert found == by_schema(body)
    assert taken > 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b'{"content":"x"} x',
        b'{"content":"x",}',
        b'{"content":"\n"}',
        b'{"content":"\xff"}',
        b'{"content":"\xed\xa0\x80"}',
        rb'{"content":"\ud800"}',
        b'\xef\xbb\xbf{"content":"x"}',
        b'{"content":"x","delay_seconds":NaN}',
        b'{"content":"x","delay_seconds":01}',
        b'{"content":' + b"[" * 100_000,
    ],
)
def test_what_is_no_order_is_left_to_the_schema(body: bytes) -> None:
    assert quickly(body) is None
    with pytest.raises(Problem):
        by_schema(body)


@pytest.mark.parametrize("field", [fields.Dict(), fields.String(validate=OneOf(["a"]))])
def test_rule_that_it_does_not_know_is_found_at_the_start(field: fields.Field[Any]) -> None:
    schema = Schema.from_dict({"content": field})()

    with pytest.raises(TypeError, match="content is not known here"):
        Reader(schema, ["content"])
