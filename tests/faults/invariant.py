"""How an invariant is written down: a function that finds what is against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.faults.history import Evidence


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    id: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.id or ''} {self.text}"


Invariant = Callable[[Evidence], Iterable[Violation]]

Found = Iterator[tuple[str | None, str]]

INVARIANTS: list[Invariant] = []
"""All that there are, in the order in which they were written down."""


def invariant(function: Callable[[Evidence], Found]) -> Invariant:
    def named(evidence: Evidence) -> Iterator[Violation]:
        for id, text in function(evidence):
            yield Violation(function.__name__, id, text)

    INVARIANTS.append(named)
    return named
