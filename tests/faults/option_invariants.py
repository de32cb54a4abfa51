"""What the options of a task promise, and the histories, queues and schedules around it."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from tests.faults.audit import FINAL, Event, is_rescue
from tests.faults.history import Evidence, Operation
from tests.faults.invariant import Found, invariant

OVERDUE_SECONDS = 5.0
"""A moment of a schedule may be past for so long, while nothing is broken."""


@invariant
def nothing_starts_early(evidence: Evidence) -> Found:
    """I18: no claim before the task is due, as the database says, and as its client asked for.

    A claim's moment is that of PostgreSQL's clock. If that was moved, it proves nothing.
    """
    if "postgres" in evidence.clocks_jumped:
        return
    for event in evidence.events:
        if event.status == "processing":
            first = evidence.row[event.id].retry_of is None
            asked = evidence.contents[event.id].get("not_before", 0) if first else 0
            early = max(event.was_due_at or 0, asked) - event.at
            if early > 0:
                yield event.id, f"was claimed {early:.3f} s early"


@invariant
def attempts_are_bounded(evidence: Evidence) -> Found:
    """I10: failures stay within max_attempts, and a task fails for a reason: its attempts are
    spent, its handler said so, or it expired. A task whose worker died was charged."""
    for id, events in evidence.by_task.items():
        row = evidence.row[id]
        if row.failures > row.max_attempts:
            yield id, f"failed {row.failures} times of {row.max_attempts}"
        is_told_so = row.error_type == evidence.contents[id].get("error") == "Permanent"
        is_expired = row.error_type == "Expired" and events[-1].was == "pending"
        is_spent = row.failures == row.max_attempts
        is_bad = "is_bad" in evidence.contents[id]  # its handler may have said so by accident
        if row.status == "failed" and not (is_spent or is_told_so or is_expired or is_bad):
            yield id, f"failed for good after {row.failures} of {row.max_attempts}"
        dead = sum(map(is_rescue, events))
        if dead > row.failures:
            yield id, f"lost its worker {dead} times and was charged {row.failures}"


@invariant
def a_key_is_one_task(evidence: Evidence) -> Found:
    """I11, I12: a create makes one row at most, and none when it was refused; all creates under an
    Idempotency-Key name the same task."""
    keys = Counter(
        evidence.contents[row.id].get("key")
        for row in evidence.rows
        if row.retry_of is None and row.schedule is None
    )
    for key, count in keys.items():
        if count > 1:
            yield None, f"create {key} made {count} rows"
    named: dict[str, set[str | None]] = defaultdict(set)
    for operation in evidence.operations:
        refused = operation.code is not None and 400 <= operation.code < 500
        if operation.verb == "create" and refused and operation.key in keys:
            yield None, f"create {operation.key} was refused with {operation.code} and made a row"
        if operation.verb == "create" and operation.code in (200, 201):
            named[operation.key].add(operation.id)
    for key, ids in named.items():
        if len(ids) > 1:
            yield None, f"create {key} was answered with {len(ids)} tasks"


@invariant
def many_are_all_or_none(evidence: Evidence) -> Found:
    """Of `POST /tasks` every task is there, or none."""
    batches: dict[str, list[int]] = defaultdict(list)
    for row in evidence.rows:
        content = evidence.contents[row.id]
        if "batch" in content and row.retry_of is None:
            batches[content["batch"]].append(content["size"])
    for batch, sizes in batches.items():
        if len(sizes) != sizes[0]:
            yield None, f"of the {sizes[0]} tasks of {batch} there are {len(sizes)}"
    for operation in evidence.operations:
        if operation.verb == "create_many" and operation.code == 201:
            made = len(batches[operation.key])
            if len(set(operation.ids)) != made:
                yield None, f"{operation.key} was answered with {operation.ids} and made {made}"


@invariant
def retry_is_of_a_final_task(evidence: Evidence) -> Found:
    """A task is made of a final one, once for each request; by filter once at all."""
    ended = {event.id: seq for seq, event in enumerate(evidence.events) if event.status in FINAL}
    made = {event.id: seq for seq, event in enumerate(evidence.events) if event.was is None}
    asked = Counter(o.key for o in evidence.operations if o.verb == "retry" and not _is_refused(o))
    by_filter = any(operation.verb == "retry_many" for operation in evidence.operations)
    retried = Counter(row.retry_of for row in evidence.rows if row.retry_of is not None)
    for row in evidence.rows:
        if row.retry_of is not None and made[row.id] < ended.get(row.retry_of, len(made)):
            yield row.id, f"was made of {row.retry_of}, which was not final"
    for id, count in retried.items():
        if count > asked[id] + by_filter:
            yield id, f"was retried {count} times, and {asked[id]} were asked for"
    for operation in evidence.operations:
        is_made = operation.verb == "retry" and operation.code == 201
        if is_made and evidence.row[operation.id or ""].retry_of != operation.key:
            yield operation.id, f"is not of {operation.key}"
        for id in operation.ids if operation.verb == "retry_many" else ():
            if not retried[id]:
                yield id, "was said to be retried, and is not"


@invariant
def queue_keeps_its_limit(evidence: Evidence) -> Found:
    """Never more tasks of a queue run than it lets.

    Claims of one queue exclude each other, so their order here is that of their commits. An end may
    be written down a moment before it is committed, so that a run may be missed, and none invented.
    """
    running: dict[str, set[str]] = defaultdict(set)
    for event in evidence.events:
        now = running[event.queue]
        if event.status != "processing":
            now.discard(event.id)
            continue
        now.add(event.id)
        if len(now) > evidence.limits.get(event.queue, len(now)):
            yield event.id, f"ran as number {len(now)} of {event.queue}"


@invariant
def unique_key_has_one_live_task(evidence: Evidence) -> Found:
    """While a task with it is not final, no other is made: the second is inserted only after the
    end of the first is committed, and so is written down later."""
    live: dict[str, str] = {}
    for event in evidence.events:
        key = evidence.row[event.id].unique_key
        if key is None:
            continue
        if event.was is None:
            if key in live:
                yield event.id, f"was made with {key} while {live[key]} was live"
            live[key] = event.id
        elif event.status in FINAL and live.get(key) == event.id:
            del live[key]
    for operation in evidence.operations:
        was_there = operation.verb == "create" and operation.code == 200
        if was_there and evidence.row[operation.id or ""].unique_key is None:
            yield operation.id, "was there before a create, and has no unique key"


@invariant
def a_moment_is_one_task(evidence: Evidence) -> Found:
    """A schedule makes one task for a moment, and lets none pass."""
    moments = Counter((row.schedule, row.scheduled_for) for row in evidence.rows if row.schedule)
    for (schedule, moment), count in moments.items():
        if count > 1:
            yield None, f"schedule {schedule} made {count} tasks for {moment}"
    for schedule, seconds in evidence.overdue.items():
        if seconds > OVERDUE_SECONDS:
            yield None, f"schedule {schedule} has been due for {seconds:.1f} s"


@invariant
def history_is_what_happened(evidence: Evidence) -> Found:
    """Each run that did not complete its task is in its history, once and as it ended; no other."""
    told = Counter((row.id, row.attempt, row.outcome) for row in evidence.attempts)
    happened = Counter(
        (id, after.was_attempt, _outcome(before, after))
        for id, events in evidence.by_task.items()
        for before, after in pairwise(events)
        if after.was == "processing" and after.status != "completed"
    )
    for (id, attempt, outcome), count in (told - happened).items():
        yield id, f"attempt {attempt} is recorded as {outcome} {count} times more than it happened"
    for (id, attempt, outcome), _ in (happened - told).items():
        yield id, f"attempt {attempt} was {outcome}, and nothing records it"


def _outcome(before: Event, after: Event) -> str:
    """How a run ended that did not complete its task."""
    if after.status == "canceled":
        return "canceled"
    if is_rescue(after):
        return "lost"
    if after.status == "failed":
        return "failed"
    return "retried" if after.failures > before.failures else "released"


def _is_refused(operation: Operation) -> bool:
    return operation.code is not None and 400 <= operation.code < 500
