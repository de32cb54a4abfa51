"""The invariants that no mutant breaks turn red too: each with an evidence that is against it."""

from __future__ import annotations

import json

import pytest

from tests.faults.audit import AttemptRow, Event, Lapse, TaskRow
from tests.faults.checker import check
from tests.faults.history import (
    Evidence,
    Footprint,
    Injection,
    Operation,
    Pulse,
    Sample,
    Seen,
)


def row(
    id: str, *, retry_of: str | None = None, moment: str | None = None, **content: object
) -> TaskRow:
    schedule = "hourly" if moment else None
    text = json.dumps({"key": None if retry_of or moment else id, **content})
    return TaskRow(id, text, "canceled", 0, 0, 3, None, None, retry_of, schedule, moment)


def event(id: str, was: str | None, status: str, was_attempt: int = 0, attempt: int = 0) -> Event:
    worker = "worker" if status == "processing" else None
    return Event(
        0.0, id, was, status, was_attempt, attempt, 0, 3, 0.0, None, worker, None, None, queue=""
    )


def life(id: str) -> list[Event]:
    return [event(id, None, "pending"), event(id, "pending", "canceled")]


GOOD = Evidence(rows=[row("a")], events=life("a"))

HALF_A_BATCH = Evidence(rows=[row("a", batch="b", size=2)], events=life("a"))
TWICE_A_MOMENT = Evidence(
    rows=[row("a", moment="12:00"), row("b", moment="12:00")], events=life("a") + life("b")
)
LATE_SCHEDULE = Evidence(overdue={"hourly": 60.0})
UNASKED_RETRY = Evidence(
    rows=[row("a"), row("b", retry_of="a")],
    events=life("a") + life("b"),
)
EARLY_RETRY = Evidence(
    rows=[row("a"), row("b", retry_of="a")],
    events=life("b") + life("a"),
    operations=[Operation(1, "retry", "a", "b", 0.0, 0.0, 201)],
)
RUN = [
    event("a", None, "pending"),
    event("a", "pending", "processing", 0, 1),
    event("a", "processing", "canceled", 1, 1),
]
UNTOLD_ATTEMPT = Evidence(rows=[row("a")], events=RUN)
INVENTED_ATTEMPT = Evidence(
    rows=[row("a")], events=life("a"), attempts=[AttemptRow("a", 1, "canceled")]
)
WRONG_ATTEMPT = Evidence(rows=[row("a")], events=RUN, attempts=[AttemptRow("a", 1, "lost")])


def started(*in_hand: set[str]) -> Evidence:
    """A task that started with its create, and was seen while it ran."""
    return Evidence(
        rows=[row("a")],
        events=[event("a", None, "processing", 0, 1), event("a", "processing", "canceled", 1, 1)],
        attempts=[AttemptRow("a", 1, "canceled")],
        samples=[Sample(frozenset({("a", 1)}), frozenset(each)) for each in in_hand],
    )


NEVER_TOLD = started(set(), set())
TOLD_LATER = started(set(), {"a"}, {"a"})
TAKEN_AWAY = started({"a"}, set())
NEVER_IN_HAND = Evidence(
    rows=[row("a")],
    events=RUN,
    attempts=[AttemptRow("a", 1, "canceled")],
    samples=[Sample(frozenset({("a", 1)}), frozenset())],
)


def lapsed(*, kills: bool) -> Evidence:
    """A worker that runs something is declared dead during a fault."""
    return Evidence(
        rows=[row("a")],
        events=RUN,
        attempts=[AttemptRow("a", 1, "canceled")],
        lapses=[Lapse(0.5, "worker", 0.4)],
        seen=Seen(injections=[Injection("some.fault", -1.0, 1.0, kills=kills)]),
    )


MANY_DESCRIPTORS = Evidence(footprint=Footprint(60, 50), footprints=[Footprint(60, 150)])
SILENT = Evidence(seen=Seen(pulses=[Pulse("client.storm", float("inf"), 2.5)]))
TORN_BY_A_DEATH = Evidence(
    log_lines=[b'{"event":"a"}', b'{"eve'], seen=Seen(injections=[Injection("service.kill", 0, 1)])
)
TORN = Evidence(log_lines=[b'{"event":"a"}', b'{"eve'])


@pytest.mark.parametrize(
    "evidence", [GOOD, NEVER_TOLD, TOLD_LATER, lapsed(kills=True), TORN_BY_A_DEATH]
)
def test_good_evidence_is_green(evidence: Evidence) -> None:
    assert check(evidence) == []


@pytest.mark.parametrize(
    ("evidence", "invariant"),
    [
        (HALF_A_BATCH, "many_are_all_or_none"),
        (TWICE_A_MOMENT, "a_moment_is_one_task"),
        (LATE_SCHEDULE, "a_moment_is_one_task"),
        (UNASKED_RETRY, "retry_is_of_a_final_task"),
        (EARLY_RETRY, "retry_is_of_a_final_task"),
        (UNTOLD_ATTEMPT, "history_is_what_happened"),
        (INVENTED_ATTEMPT, "history_is_what_happened"),
        (WRONG_ATTEMPT, "history_is_what_happened"),
        (TAKEN_AWAY, "finished_before_acknowledged"),
        (NEVER_IN_HAND, "finished_before_acknowledged"),
        (lapsed(kills=False), "no_worker_is_killed"),
        (MANY_DESCRIPTORS, "memory_comes_back"),
        (SILENT, "living_services_answer"),
        (TORN, "log_lines_are_json"),
    ],
)
def test_bad_evidence_is_red(evidence: Evidence, invariant: str) -> None:
    assert {violation.invariant for violation in check(evidence)} == {invariant}
