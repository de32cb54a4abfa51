"""What holds while clients and handlers misbehave."""

from __future__ import annotations

import re
from collections import Counter

import orjson

from tests.faults.history import Evidence, Footprint, Injection
from tests.faults.invariant import Found, invariant

GROWN_MEGABYTES = 50.0
GROWN_DESCRIPTORS = 30

_FREE_RUNS = 3
"""A claim may be handed back before it runs, when its answer came too late."""

_FORGED = re.compile(rb"(?:^|[\n\r\x0b\x0c\x85]|\xc2\x85|\xe2\x80[\xa8\xa9])FORGED")
"""A line that a handler has made up, after the text that begins a line for a reader."""


def has_grown(before: Footprint, now: Footprint) -> bool:
    """It holds more than what a heap and its caches may keep."""
    return (
        now.megabytes > before.megabytes + GROWN_MEGABYTES
        or now.descriptors > before.descriptors + GROWN_DESCRIPTORS
    )


@invariant
def neighbours_are_not_charged(evidence: Evidence) -> Found:
    """A good task that may fail once only completes, whatever others do, at its first
    failure-free run."""
    for row in evidence.rows:
        if not evidence.contents[row.id].get("is_good"):
            continue
        if row.failures:
            yield row.id, f"was charged {row.failures} times: {row.error_type}"
        elif row.status not in ("completed", "canceled"):
            yield row.id, f"among others it is {row.status}: {row.error_type}"


@invariant
def no_worker_is_killed(evidence: Evidence) -> Found:
    """No client and no handler costs a worker its lease. A worker that claims after the fault has
    begun lives, and still lives when the fault ends."""
    for injection in _mere(evidence):
        alive = {
            event.worker_id
            for event in evidence.events
            if event.status == "processing" and injection.started < event.at < injection.ended
        }
        for lapse in evidence.lapses:
            if lapse.id in alive and injection.started < lapse.at < injection.ended:
                yield None, f"worker {lapse.id} was declared dead during {injection.fault}"


@invariant
def nothing_runs_for_free(evidence: Evidence) -> Found:
    """While no process stops, a run of a bad handler completes its task or is charged: what is
    handed back instead, again and again, would run for ever."""
    free: Counter[str] = Counter()
    for injection in _mere(evidence):
        for event in evidence.events:
            is_back = event.was == "processing" and event.status == "pending"
            is_charged = event.error_attempt == event.was_attempt
            is_within = injection.started < event.at < injection.ended
            if is_back and is_within and not is_charged:
                free[event.id] += 1
    for id, count in free.items():
        if count > _FREE_RUNS and "is_bad" in evidence.contents[id]:
            yield id, f"ran {count} times and was not charged"


@invariant
def living_services_answer(evidence: Evidence) -> Found:
    """`/health/live` of a service that is not stopped answers, whatever clients do."""
    for pulse in evidence.seen.pulses:
        if pulse.seconds > pulse.bound_seconds:
            yield (
                None,
                f"/health/live took {pulse.seconds:.1f} s of {pulse.bound_seconds:g} "
                f"during {pulse.fault}",
            )


@invariant
def bad_clients_are_refused(evidence: Evidence) -> Found:
    """A bad client gets an error that says what is wrong, or that there is no room, or its
    connection is closed. It never makes the service fail, and never gets what it must not have."""
    for (what, code), count in evidence.seen.answers.items():
        is_refused = code == 0 or 400 <= code < 500 or code == 503
        is_answered = code == 200 and not what.startswith("body ")
        if not (is_refused or is_answered):
            yield None, f"{what} was answered with {code}, {count} times"


@invariant
def memory_comes_back(evidence: Evidence) -> Found:
    """After a quiet time a service holds about what it held at the beginning."""
    before = evidence.footprint
    for now in evidence.footprints if before is not None else ():
        if has_grown(before, now):
            yield None, f"{before} became {now}"


@invariant
def log_lines_are_json(evidence: Evidence) -> Found:
    """Each line of the log files is an object, but for the last of a process that was killed; and
    no value makes a line of its own."""
    torn = 0
    for line in evidence.log_lines:
        try:
            is_object = isinstance(orjson.loads(line), dict)
        except orjson.JSONDecodeError:
            is_object = False
        if _FORGED.search(line):
            yield None, f"a handler has made a line of its own: {line[:100]!r}"
        elif not is_object:
            torn += 1
            if torn > evidence.kills:
                yield None, f"is not JSON: {line[:100]!r} … {line[-50:]!r}"
    forged = [line for line in evidence.logs.splitlines() if line.startswith("FORGED")]
    if forged:
        yield None, f"a handler has made {len(forged)} lines of its own: {forged[0][:100]!r}"


def _mere(evidence: Evidence) -> list[Injection]:
    """Faults that stopped no process. Where PostgreSQL's clock was moved, its times don't tell what
    happened during them."""
    if "postgres" in evidence.clocks_jumped:
        return []
    return [each for each in evidence.seen.injections if not each.kills]
