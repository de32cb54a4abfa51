"""Reads files of SQL into named queries."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib import resources

_PARAMETER = re.compile(r"%\((\w+)\)s")
_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def load(file: str) -> dict[str, str]:
    """The queries by name, without their comments."""
    text = (resources.files("tasksvc.store") / file).read_text("utf-8")
    _, *parts = _NAME.split(text)
    return {name: _statement(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A query that the server plans once for a connection."""

    prepare: str
    execute: str
    """Takes the same named parameters as the query."""

    @classmethod
    def of(cls, name: str, query: str) -> Prepared:
        parameters = list(dict.fromkeys(_PARAMETER.findall(query)))
        statement = _PARAMETER.sub(lambda found: f"${parameters.index(found[1]) + 1}", query)
        values = ", ".join(f"%({parameter})s" for parameter in parameters)
        return cls(
            f"PREPARE {name} AS {statement}",
            f"EXECUTE {name} ({values})" if values else f"EXECUTE {name}",
        )


@dataclass(frozen=True, slots=True)
class SecondsSince:
    """A parameter: the age of a moment (`time.monotonic`), as it is when the statement is sent.

    A statement waits for its session, and perhaps for a connection. An age that was worked out
    before would mean a later moment. psycopg2 asks for it as it asks `ISQLQuote`.
    """

    moment: float

    def __conform__(self, protocol: object) -> SecondsSince:
        return self

    def getquoted(self) -> bytes:
        return repr(time.monotonic() - self.moment).encode()


def _statement(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().removesuffix(";")
