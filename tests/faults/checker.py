"""Reads what happened and says which invariants did not hold.

In the manner of Jepsen's checkers: what the clients saw (an answer that never came is an unknown
outcome, not a failure), what the database went through, what the handlers did, and what is left.
It is pure, and itself tested by mutants of the service (`test_mutants.py`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.faults.audit import Event, Lapse, TaskRow

RECOVERY_SECONDS = 5.0

FINAL = frozenset({"completed", "failed", "canceled"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of a client. Times are `time.time()`."""

    client: int
    verb: str
    """`create`, `get` or `cancel`."""
    key: str
    """What the client put into the task's content; unique for each create."""
    id: str | None
    started: float
    ended: float
    code: int | None
    """The answer's status; None when none came: then the outcome is unknown."""
    status: str | None = None
    """The task's status in the answer."""


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
    """One look while nothing was broken yet: processing tasks, and those with an entry in hand."""

    processing: frozenset[str]
    in_hand: frozenset[str]


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the end of a fault until a task was created and completed."""

    fault: str
    seconds: float


@dataclass
class Evidence:
    """All that is known about a run."""

    operations: list[Operation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    lapses: list[Lapse] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    rows: list[TaskRow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    stream_depth: int = 0
    stream_pending: int = 0
    consumers: int = 0
    expected_consumers: int = 0
    counted: dict[str, int] | None = None
    """`task_status` as a service told it at the end."""
    answers: str = ""
    """Every answer's body that was not a task."""
    logs: str = ""
    secrets: tuple[str, ...] = ()
    """What must never be said."""
    clock_jumped: bool = False
    """A clock was moved: then times of different processes say nothing."""

    @cached_property
    def row(self) -> dict[str, TaskRow]:
        return {row.id: row for row in self.rows}

    @cached_property
    def by_task(self) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.id].append(event)
        return found


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    id: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.id or ''} {self.text}"


Invariant = Callable[[Evidence], Iterable[Violation]]

_INVARIANTS: list[Invariant] = []


def check(evidence: Evidence) -> list[Violation]:
    """Every violation of every invariant; none is a good run."""
    return [violation for invariant in _INVARIANTS for violation in invariant(evidence)]


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


def _invariant(function: Callable[[Evidence], Iterator[tuple[str | None, str]]]) -> Invariant:
    def invariant(evidence: Evidence) -> Iterator[Violation]:
        for id, text in function(evidence):
            yield Violation(function.__name__, id, text)

    _INVARIANTS.append(invariant)
    return invariant


Found = Iterator[tuple[str | None, str]]


@_invariant
def acknowledged_is_kept(evidence: Evidence) -> Found:
    """I1: what was answered with 201 is in the table, and is never again not found."""
    for operation in evidence.operations:
        if operation.verb == "create" and operation.code == 201:
            if operation.id not in evidence.row:
                yield operation.id, "was answered with 201 and is gone"
        elif operation.code == 404:
            yield operation.id, f"{operation.verb} answered 404"


@_invariant
def every_task_ends(evidence: Evidence) -> Found:
    """I2: after all is healed and drained, every task is final."""
    for row in evidence.rows:
        if row.status not in FINAL:
            yield row.id, f"is still {row.status}"


@_invariant
def final_once(evidence: Evidence) -> Found:
    """I3, I5: one final transition; nothing follows it; every step goes up in rank."""
    for id, events in evidence.by_task.items():
        for event in events:
            if event.was in FINAL:
                yield id, f"left {event.was} for {event.status}"
            if event.was is not None and _rank(event.status, event.attempt) <= _rank(
                event.was, event.was_attempt or 0
            ):
                yield (
                    id,
                    f"went from {event.was} ({event.was_attempt}) to {event.status} "
                    f"({event.attempt})",
                )
        ends = [event.status for event in events if event.status in FINAL]
        if len(ends) > 1:
            yield id, f"ended {len(ends)} times: {ends}"
        if events[-1].status != evidence.row[id].status:
            yield id, f"last went to {events[-1].status} and is {evidence.row[id].status}"


def _rank(status: str, attempt: int) -> float:
    if status in FINAL:
        return float("inf")
    return 2 * attempt + (1 if status == "pending" else 0)


@_invariant
def final_is_seen_as_final(evidence: Evidence) -> Found:
    """I4: once a client saw a final status, every later request sees the same."""
    seen: dict[str, tuple[float, str]] = {}
    for operation in sorted(evidence.operations, key=lambda each: each.ended):
        if operation.id and operation.status in FINAL and operation.code == 200:
            seen.setdefault(operation.id, (operation.ended, operation.status))
    for operation in evidence.operations:
        if operation.id in seen and operation.verb == "get" and operation.code == 200:
            at, status = seen[operation.id]
            if operation.started > at and operation.status != status:
                yield operation.id, f"was seen as {status}, then as {operation.status}"
    for id, (_, status) in seen.items():
        if evidence.row[id].status != status:
            yield id, f"was seen as {status} and is {evidence.row[id].status}"


@_invariant
def result_is_of_the_current_attempt(evidence: Evidence) -> Found:
    """I6: what is recorded was done by the attempt that the row names, before it was recorded."""
    ends = {(e.id, e.attempt): e.at for e in evidence.effects if e.event == "end"}
    for event in evidence.events:
        if event.status == "completed":
            ended = ends.get((event.id, event.attempt))
            if ended is None:
                yield event.id, f"completed as attempt {event.attempt}, which never ended"
            elif ended > event.at and not evidence.clock_jumped:
                yield event.id, f"completed before attempt {event.attempt} ended"


@_invariant
def attempt_starts_once(evidence: Evidence) -> Found:
    """I7: no attempt runs twice, and each has a claim."""
    starts = Counter((e.id, e.attempt) for e in evidence.effects if e.event == "start")
    claims = {(e.id, e.attempt) for e in evidence.events if e.status == "processing"}
    for (id, attempt), count in starts.items():
        if count > 1:
            yield id, f"attempt {attempt} started {count} times"
        if (id, attempt) not in claims:
            yield id, f"attempt {attempt} started without a claim"


@_invariant
def holder_keeps_its_tasks(evidence: Evidence) -> Found:
    """A task is taken only from a worker whose lease has run out."""
    # A worker that leaves retires itself before its lease runs out; nobody rescues from it.
    lapsed = {
        lapse.id: lapse
        for lapse in evidence.lapses
        if lapse.at >= lapse.expires_at or evidence.clock_jumped
    }
    for event in evidence.events:
        if _is_rescue(event):
            lapse = lapsed.get(event.was_worker_id or "")
            if lapse is None or (lapse.at > event.at and not evidence.clock_jumped):
                yield event.id, f"was taken from {event.was_worker_id}, which had not lapsed"


@_invariant
def canceled_stays_canceled(evidence: Evidence) -> Found:
    """I8, I9: after 200 to a cancel the task is canceled; only one cancel gets it."""
    gotten = Counter(o.id for o in evidence.operations if o.verb == "cancel" and o.code == 200)
    for id, count in gotten.items():
        if id is not None and evidence.row[id].status != "canceled":
            yield id, f"was canceled and is {evidence.row[id].status}"
        if count > 1:
            yield id, f"was canceled {count} times"
    for operation in evidence.operations:
        refused = operation.verb == "cancel" and operation.code == 400 and operation.id
        if refused and evidence.row[operation.id or ""].status not in FINAL:
            yield operation.id, "was said to be final, and is not"


@_invariant
def attempts_are_bounded(evidence: Evidence) -> Found:
    """I10: failures stay within max_attempts; each claim is paid for by what ended the last."""
    for id, events in evidence.by_task.items():
        row = evidence.row[id]
        if row.failures > row.max_attempts:
            yield id, f"failed {row.failures} times of {row.max_attempts}"
        if row.status == "failed" and row.failures != row.max_attempts:
            yield id, f"failed for good after {row.failures} of {row.max_attempts}"
        dead = sum(map(_is_rescue, events))
        if dead > row.failures:
            yield id, f"lost its worker {dead} times and was charged {row.failures}"


@_invariant
def a_key_is_one_task(evidence: Evidence) -> Found:
    """I12: a create makes one row at most, and none when it was refused."""
    keys = Counter(_key(row.content) for row in evidence.rows)
    for key, count in keys.items():
        if count > 1:
            yield None, f"create {key} made {count} rows"
    for operation in evidence.operations:
        refused = operation.code is not None and 400 <= operation.code < 500
        if operation.verb == "create" and refused and operation.key in keys:
            yield None, f"create {operation.key} was refused with {operation.code} and made a row"


@_invariant
def nothing_starts_early(evidence: Evidence) -> Found:
    """I18: no claim before the task is due, by the database's clock."""
    for event in evidence.events:
        early = event.status == "processing" and (event.was_due_at or 0) > event.at
        if early and not evidence.clock_jumped:
            yield event.id, f"was claimed {event.was_due_at - event.at:.3f} s early"


@_invariant
def finished_before_acknowledged(evidence: Evidence) -> Found:
    """While nothing is broken, every task that is being processed has its entry in hand."""
    for sample in evidence.samples:
        for id in sample.processing - sample.in_hand:
            yield id, "was acknowledged before it was finished"


@_invariant
def stream_is_empty_at_the_end(evidence: Evidence) -> Found:
    """I13: nothing is left in the stream, in hand, or of consumers that are gone."""
    if evidence.stream_depth:
        yield None, f"{evidence.stream_depth} entries are left in the stream"
    if evidence.stream_pending:
        yield None, f"{evidence.stream_pending} entries are left in hand"
    if evidence.consumers > evidence.expected_consumers:
        yield None, f"{evidence.consumers} consumers for {evidence.expected_consumers}"


@_invariant
def statuses_are_counted_right(evidence: Evidence) -> Found:
    """I14: `task_status` is what the table holds."""
    if evidence.counted is not None:
        held = Counter(row.status for row in evidence.rows)
        told = {status: count for status, count in evidence.counted.items() if count}
        if told != dict(held):
            yield None, f"told {told}, holds {dict(held)}"


@_invariant
def recovery_is_fast(evidence: Evidence) -> Found:
    """After the end of any single fault the service creates and processes again."""
    for recovery in evidence.recoveries:
        if recovery.seconds > RECOVERY_SECONDS:
            yield None, f"took {recovery.seconds:.1f} s after {recovery.fault}"


@_invariant
def answers_are_ours(evidence: Evidence) -> Found:
    """I17, I20: nothing but our answers, and nothing in them that must not be said."""
    allowed = {
        "create": {201, 503, None},
        "get": {200, 404, 503, None},
        "cancel": {200, 400, 404, 503, None},
    }
    for operation in evidence.operations:
        if operation.code not in allowed[operation.verb]:
            yield operation.id, f"{operation.verb} answered {operation.code}"
    for word in (*evidence.secrets, *_INSIDES):
        if word in evidence.answers:
            yield None, f"answered {_around(word, evidence.answers)!r}"
    for word in (*evidence.secrets, *_SQL):
        if word in evidence.logs:
            yield None, f"logged {_around(word, evidence.logs)!r}"


_SQL = ("FROM task", "UPDATE task", "INSERT INTO", "psycopg2.errors")
_INSIDES = ("Traceback", "psycopg2", "asyncio", *_SQL)


def _around(word: str, text: str) -> str:
    at = text.index(word)
    return text[max(0, at - 60) : at + 60]


def _is_rescue(event: Event) -> bool:
    went_back = event.was == "processing" and event.status in ("pending", "failed")
    return went_back and event.error_type == "WorkerLost"


def _key(content: str) -> Any:
    return json.loads(content).get("key")
