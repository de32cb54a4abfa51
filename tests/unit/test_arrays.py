"""Array literals, as PostgreSQL reads them. That it does is for the tests of the store."""

from __future__ import annotations

import pytest

from tasksvc.domain.task import Status
from tasksvc.store.arrays import plain_array, text_array


@pytest.mark.parametrize(
    ("values", "literal"),
    [
        ([], "{}"),
        ([1, 2.5, True], "{1,2.5,True}"),
        ([Status.PENDING, Status.FAILED], "{pending,failed}"),
        (iter(["a", "b"]), "{a,b}"),
    ],
)
def test_plain_array(values: list[object], literal: str) -> None:
    assert plain_array(values) == literal


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("", '{""}'),
        (None, "{NULL}"),
        ("NULL", '{"NULL"}'),
        ("a,b}", '{"a,b}"}'),
        ('say "x"', r'{"say \"x\""}'),
        ("back\\slash", r'{"back\\slash"}'),
        ('\\"', r'{"\\\""}'),
        ("a\nb ü", '{"a\nb ü"}'),
    ],
)
def test_text_array(value: str | None, literal: str) -> None:
    assert text_array([value]) == literal


def test_text_array_of_many() -> None:
    assert text_array(["a", None, "b"]) == '{"a",NULL,"b"}'
    assert text_array([]) == "{}"
