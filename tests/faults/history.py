"""What happened in a run: what clients saw, what the database went through, what handlers did."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.faults.audit import AttemptRow, Event, Lapse, TaskRow


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of a client. Times are `time.time()`."""

    client: int
    verb: str
    """`create`, `get`, `cancel`, …; `create_many` and so on for many tasks at once."""
    key: str
    """What the client put into the task's content: of each create another, but the same under the
    same Idempotency-Key. Of a retry the id of the task that is to be tried again."""
    id: str | None
    started: float
    ended: float
    code: int | None
    """The answer's status; None when none came: then the outcome is unknown."""
    status: str | None = None
    """The task's status in the answer."""
    ids: tuple[str, ...] = ()
    """Of what was done to many tasks: those that the answer names."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a handler did: `start`, `end` (it returned) or `stop` (it raised)."""

    event: str
    id: str
    attempt: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One look while nothing was broken yet: the tasks that were processing, each with its attempt,
    and those with an entry in hand."""

    processing: frozenset[tuple[str, int]]
    in_hand: frozenset[str]


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the end of a fault until a task was created and completed."""

    fault: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault, from its begin to its end. Times are `time.time()`."""

    fault: str
    started: float
    ended: float
    kills: bool = True
    """It may have stopped a process, a server or the network between them. One that only sent
    requests or created tasks must not cost any other task its worker."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The longest time that a service which was not stopped took to answer `/health/live` during a
    fault; infinite when it did not answer or was gone."""

    fault: str
    seconds: float
    bound_seconds: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a service holds while no client asks for anything."""

    megabytes: float
    descriptors: int


@dataclass
class Seen:
    """What the faults themselves saw of the service."""

    injections: list[Injection] = field(default_factory=list)
    pulses: list[Pulse] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """To bad clients: how many of each kind of request were answered with each status."""

    def knows(self, fault: str, since: float) -> bool:
        """Whether the fault has written itself down."""
        return any(each.fault == fault and each.started >= since for each in self.injections)


@dataclass
class Evidence:
    """All that is known about a run."""

    operations: list[Operation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    lapses: list[Lapse] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    rows: list[TaskRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """How many tasks of a queue may run at a time."""
    overdue: dict[str, float] = field(default_factory=dict)
    """Of each schedule, for how many seconds its next moment has been due."""
    samples: list[Sample] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    footprint: Footprint | None = None
    """At the beginning, the largest of all services; None when it was not measured."""
    footprints: list[Footprint] = field(default_factory=list)
    """Of each service at the end."""
    log_lines: list[bytes] = field(default_factory=list)
    """Of the log files."""
    stream_depth: int = 0
    stream_pending: int = 0
    consumers: int = 0
    expected_consumers: int = 0
    counted: dict[str, int] | None = None
    """`task_status` as a service reported it at the end."""
    answers: str = ""
    """Every answer's body that was not a task."""
    logs: str = ""
    secrets: tuple[str, ...] = ()
    """What must never be said."""
    clocks_jumped: frozenset[str] = frozenset()
    """Whose clock was moved. Then its times and those of others say nothing about each other, and
    if it was PostgreSQL's, nor do its own about their order."""

    @cached_property
    def row(self) -> dict[str, TaskRow]:
        return {row.id: row for row in self.rows}

    @cached_property
    def contents(self) -> dict[str, dict[str, Any]]:
        """What each task was to do, by its id; nothing for one that no good client made."""
        return {row.id: _orders(row.content) for row in self.rows}

    @property
    def kills(self) -> int:
        """How many faults may have stopped a process in the middle of a line."""
        return sum(injection.kills for injection in self.seen.injections)

    @cached_property
    def by_task(self) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.id].append(event)
        return found


def _orders(content: str) -> dict[str, Any]:
    try:
        orders = json.loads(content)
    except ValueError:
        return {}
    return orders if isinstance(orders, dict) else {}


def clocks_jumped(faults: Iterable[str]) -> frozenset[str]:
    """Whose clock the faults of these names have moved."""
    names = [fault.removeprefix("clock.") for fault in faults if fault.startswith("clock.")]
    return frozenset(
        whose for whose in ("service", "postgres", "redis") if any(whose in name for name in names)
    )


def story(evidence: Evidence, id: str) -> list[str]:
    """All that is known about one task, in the order of time: the shortest history of it."""
    lines = [
        (o.started, f"client {o.client}: {o.verb} …") for o in evidence.operations if o.id == id
    ]
    lines += [
        (o.ended, f"client {o.client}: {o.verb} -> {o.code} {o.status or ''}")
        for o in evidence.operations
        if o.id == id
    ]
    lines += [
        (
            e.at,
            f"database: {e.was} ({e.was_attempt}) -> {e.status} ({e.attempt}), failures "
            f"{e.failures}, holder {e.was_worker_id} -> {e.worker_id} {e.error_type or ''}",
        )
        for e in evidence.by_task.get(id, [])
    ]
    lines += [
        (e.at, f"handler in {e.pid}: {e.event} of attempt {e.attempt}")
        for e in evidence.effects
        if e.id == id
    ]
    return [f"{at:.6f}  {text}" for at, text in sorted(lines)]
