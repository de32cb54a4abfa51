"""Reads what happened and says which invariants did not hold.

In the manner of Jepsen's checkers: what the clients saw (an answer that never came is an unknown
outcome, not a failure), what the database went through, what the handlers did, and what is left.
It is pure, and itself tested by mutants of the service (`test_mutants.py`). Here is what holds for
every task; what its options promise is in `option_invariants.py`, and what holds while clients and
handlers misbehave in `side_invariants.py`.
"""

from __future__ import annotations

from collections import Counter

from tests.faults import option_invariants, side_invariants  # noqa: F401 - they add their own
from tests.faults.audit import FINAL, is_rescue
from tests.faults.history import Evidence
from tests.faults.invariant import INVARIANTS, Found, Violation, invariant

RECOVERY_SECONDS = 5.0

_CREATES = ("create", "create_many", "retry")


def check(evidence: Evidence) -> list[Violation]:
    """Every violation of every invariant; none is a good run."""
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]


@invariant
def acknowledged_is_kept(evidence: Evidence) -> Found:
    """I1: what was answered with 201 is in the table, and is never again not found."""
    for operation in evidence.operations:
        if operation.verb in _CREATES and operation.code in (200, 201):
            for id in operation.ids or [operation.id]:
                if id not in evidence.row:
                    yield id, f"was answered with {operation.code} and is gone"
        if operation.code == 404:
            yield operation.id, f"{operation.verb} answered 404"


@invariant
def every_task_ends(evidence: Evidence) -> Found:
    """I2: after all is healed and drained, every task is final."""
    for row in evidence.rows:
        if row.status not in FINAL:
            yield row.id, f"is still {row.status}"


@invariant
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


@invariant
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


@invariant
def result_is_of_the_current_attempt(evidence: Evidence) -> Found:
    """I6: what is recorded was done by the attempt that the row names, before it was recorded."""
    ends = {(e.id, e.attempt): e.at for e in evidence.effects if e.event == "end"}
    for event in evidence.events:
        if event.status == "completed":
            ended = ends.get((event.id, event.attempt))
            if ended is None:
                yield event.id, f"completed as attempt {event.attempt}, which never ended"
            elif ended > event.at and not evidence.clocks_jumped & {"service", "postgres"}:
                yield event.id, f"completed before attempt {event.attempt} ended"


@invariant
def attempt_starts_once(evidence: Evidence) -> Found:
    """I7: no attempt runs twice, and each has a claim."""
    starts = Counter((e.id, e.attempt) for e in evidence.effects if e.event == "start")
    claims = {(e.id, e.attempt) for e in evidence.events if e.status == "processing"}
    for (id, attempt), count in starts.items():
        if count > 1:
            yield id, f"attempt {attempt} started {count} times"
        if (id, attempt) not in claims:
            yield id, f"attempt {attempt} started without a claim"


@invariant
def holder_keeps_its_tasks(evidence: Evidence) -> Found:
    """A task is taken only from a worker whose lease has run out."""
    # A worker that leaves retires itself before its lease runs out. The rescuer leaves its tasks.
    jumped = "postgres" in evidence.clocks_jumped
    lapsed = {
        lapse.id: lapse for lapse in evidence.lapses if lapse.at >= lapse.expires_at or jumped
    }
    for event in evidence.events:
        if is_rescue(event):
            lapse = lapsed.get(event.was_worker_id or "")
            if lapse is None or (lapse.at > event.at and not jumped):
                yield event.id, f"was taken from {event.was_worker_id}, which had not lapsed"


@invariant
def canceled_stays_canceled(evidence: Evidence) -> Found:
    """I8, I9: after 200 to a cancel the task is canceled; only one cancel gets it."""
    gotten = Counter(
        id
        for operation in evidence.operations
        if operation.verb in ("cancel", "cancel_many") and operation.code == 200
        for id in operation.ids or [operation.id]
        if id is not None
    )
    for id, count in gotten.items():
        if evidence.row[id].status != "canceled":
            yield id, f"was canceled and is {evidence.row[id].status}"
        if count > 1:
            yield id, f"was canceled {count} times"
    for operation in evidence.operations:
        refused = operation.verb == "cancel" and operation.code == 400 and operation.id
        if refused and evidence.row[operation.id or ""].status not in FINAL:
            yield operation.id, "was said to be final, and is not"


@invariant
def finished_before_acknowledged(evidence: Evidence) -> Found:
    """While nothing is broken, every run of a task has its entry in hand until it is finished. One
    that started with its create may have none, or none yet."""
    without = {(each.id, 1) for each in evidence.events if each.was is None and each.attempt == 1}
    for sample in evidence.samples:
        without = {(id, attempt) for id, attempt in without if id not in sample.in_hand}
        for id, attempt in sample.processing - without:
            if id not in sample.in_hand:
                yield id, f"was acknowledged before attempt {attempt} was finished"


@invariant
def stream_is_empty_at_the_end(evidence: Evidence) -> Found:
    """I13: nothing is left in the stream, in hand, or of consumers that are gone."""
    if evidence.stream_depth:
        yield None, f"{evidence.stream_depth} entries are left in the stream"
    if evidence.stream_pending:
        yield None, f"{evidence.stream_pending} entries are left in hand"
    if evidence.consumers > evidence.expected_consumers:
        yield None, f"{evidence.consumers} consumers for {evidence.expected_consumers}"


@invariant
def statuses_are_counted_right(evidence: Evidence) -> Found:
    """I14: `task_status` is what the table holds."""
    if evidence.counted is not None:
        held = Counter(row.status for row in evidence.rows)
        told = {status: count for status, count in evidence.counted.items() if count}
        if told != dict(held):
            yield None, f"told {told}, holds {dict(held)}"


@invariant
def recovery_is_fast(evidence: Evidence) -> Found:
    """After the end of any single fault the service creates and processes again."""
    for recovery in evidence.recoveries:
        if recovery.seconds > RECOVERY_SECONDS:
            yield None, f"took {recovery.seconds:.1f} s after {recovery.fault}"


@invariant
def answers_are_ours(evidence: Evidence) -> Found:
    """I17, I20: nothing but our answers, and nothing in them that must not be said."""
    allowed = {
        "create": {200, 201, 503, None},
        "create_many": {201, 503, None},
        "get": {200, 404, 503, None},
        "attempts": {200, 404, 503, None},
        "cancel": {200, 400, 404, 503, None},
        "cancel_many": {200, 503, None},
        "retry": {201, 400, 404, 409, 503, None},
        "retry_many": {200, 503, None},
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
