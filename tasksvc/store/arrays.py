"""Python lists as PostgreSQL array literals.

One literal for a column of a hundred rows is parsed once; psycopg2's own `ARRAY[…]` makes the
server parse and plan a hundred constants.
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from collections.abc import Iterable


def plain_array(values: Iterable[object]) -> str:
    """Values whose text needs no quotes: ids, numbers, words of an enum, truths."""
    return "{" + ",".join(map(str, values)) + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Any texts, and NULL for None."""
    return "{" + ",".join("NULL" if value is None else _quoted(value) for value in values) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
