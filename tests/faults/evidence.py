"""Gathers what there is to check, while a run goes on and after it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import redis

from tests.faults import audit
from tests.faults.history import Effect, Evidence, Footprint, Sample
from tests.faults.side_invariants import has_grown
from tests.faults.world import CANARY, WORKERS, World
from tests.harness import query

DRAIN_SECONDS = 60.0
SETTLE_SECONDS = 40.0
"""Longer than the service keeps an answer that the client does not read."""


def sample(world: World, seconds: float) -> list[Sample]:
    """Looks, while nothing is broken, at what is processed and what consumers have in hand."""
    samples: list[Sample] = []
    deadline = time.monotonic() + seconds
    with world.redis_client() as client:
        while time.monotonic() < deadline:
            before = _processing(world)
            try:
                in_hand = {
                    id for stream in world.streams(client) for id in _in_hand(client, stream)
                }
            except redis.ResponseError:
                continue
            # What is in both looks was being processed at the moment between them.
            processing = before & _processing(world)
            samples.append(Sample(frozenset(processing), frozenset(in_hand)))
    return samples


def drain(world: World, tell: Callable[[str], None], within_seconds: float = DRAIN_SECONDS) -> None:
    """Waits until every task has ended and the stream is empty, or for the time it may take."""
    deadline = time.monotonic() + within_seconds
    before = -1
    while time.monotonic() < deadline:
        ((live,),) = query(
            world.database_url, "SELECT count(*) FROM task WHERE finished_at IS NULL"
        )
        if live != before:
            tell(f"drains: {live} tasks are left")
        before = live
        if not live and _stream(world) == (0, 0):
            return
        time.sleep(0.2)


def footprints(world: World) -> list[Footprint]:
    """What each service that runs holds now."""
    found = []
    for service in world.services:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(service.process.pid)
            found.append(Footprint(process.memory_info().rss / 2**20, process.num_fds()))
    return found


def largest(each: list[Footprint]) -> Footprint:
    return Footprint(max(one.megabytes for one in each), max(one.descriptors for one in each))


def settle(world: World, before: Footprint, within_seconds: float = SETTLE_SECONDS) -> None:
    """Waits until no service holds much more than at the beginning, or for the time that it may
    take."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        if not any(has_grown(before, now) for now in footprints(world)):
            return
        time.sleep(0.5)


def gather(world: World, **seen: Any) -> Evidence:
    """The evidence of a run: what was seen from outside, and all that is kept inside."""
    url = world.database_url
    effects = world.effects_path.read_text().splitlines() if world.effects_path.exists() else []
    depth, pending = _stream(world)
    with world.redis_client() as client:
        groups = [client.xinfo_consumers(each, "tasksvc") for each in world.streams(client)]
    return Evidence(
        events=audit.events(url),
        lapses=audit.lapses(url),
        effects=[Effect(**json.loads(line)) for line in effects],
        rows=audit.rows(url),
        attempts=audit.attempts(url),
        limits=audit.limits(url),
        overdue=audit.overdue(url),
        stream_depth=depth,
        stream_pending=pending,
        consumers=max(map(len, groups)),
        # Threads and processes have one of their own.
        expected_consumers=len(world.services) * (WORKERS + 2),
        counted=_counted(world),
        logs=world.logs(),
        log_lines=world.log_lines(),
        footprints=footprints(world),
        secrets=(CANARY,),
        **seen,
    )


def _processing(world: World) -> set[tuple[str, int]]:
    statement = "SELECT id::text, attempt FROM task WHERE status = 'processing'"
    return {(id, attempt) for id, attempt in query(world.database_url, statement)}


def _in_hand(client: redis.Redis, stream: str) -> set[str]:
    """The tasks of this lane that consumers were given and have not acknowledged."""
    entries = client.xpending_range(stream, "tasksvc", "-", "+", 10_000)
    fields = dict(client.xrange(stream))
    ids = (fields.get(entry["message_id"], {}).get("id") for entry in entries)
    return {id for id in ids if id is not None}


def _stream(world: World) -> tuple[int, int]:
    """Entries in all lanes, and in hand; negative when a group is missing."""
    depth = pending = 0
    with world.redis_client() as client:
        streams = world.streams(client)
        try:
            for stream in streams:
                pending += client.xpending(stream, "tasksvc")["pending"]
                depth += client.xlen(stream)
        except redis.ResponseError:
            return -1, -1
        return (depth, pending) if streams else (-1, -1)


def _counted(world: World) -> dict[str, int] | None:
    """None when the service does not answer, which others see."""
    statuses = ("pending", "processing", "completed", "failed", "canceled")
    service = world.services[0]
    with contextlib.suppress(OSError):
        return {each: int(service.metric(f'task_status{{status="{each}"}}')) for each in statuses}
    return None
