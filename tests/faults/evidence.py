"""Gathers what there is to check, while a run goes on and after it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.faults import audit
from tests.faults.checker import Effect, Evidence, Sample
from tests.faults.world import CANARY, WORKERS, World
from tests.harness import query

DRAIN_SECONDS = 60.0


def sample(world: World, seconds: float) -> list[Sample]:
    """Looks, while nothing is broken, at what is processed and what consumers have in hand."""
    samples: list[Sample] = []
    deadline = time.monotonic() + seconds
    with world.redis_client() as client:
        while time.monotonic() < deadline:
            before = _processing(world)
            try:
                entries = client.xpending_range(world.redis_key, "tasksvc", "-", "+", 10_000)
                fields = dict(client.xrange(world.redis_key))
            except redis.ResponseError:
                continue
            in_hand = {fields.get(entry["message_id"], {}).get("id") for entry in entries}
            # What is in both looks was being processed at the moment between them.
            processing = before & _processing(world)
            samples.append(
                Sample(frozenset(id for id, _ in processing), frozenset(filter(None, in_hand)))
            )
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


def gather(world: World, **seen: Any) -> Evidence:
    """The evidence of a run: what was seen from outside, and all that is kept inside."""
    url = world.database_url
    effects = world.effects_path.read_text().splitlines() if world.effects_path.exists() else []
    depth, pending = _stream(world)
    with world.redis_client() as client:
        consumers = len(client.xinfo_consumers(world.redis_key, "tasksvc"))
    return Evidence(
        events=audit.events(url),
        lapses=audit.lapses(url),
        effects=[Effect(**json.loads(line)) for line in effects],
        rows=audit.rows(url),
        stream_depth=depth,
        stream_pending=pending,
        consumers=consumers,
        expected_consumers=len(world.services) * WORKERS,
        counted=_counted(world),
        logs=world.logs(),
        secrets=(CANARY,),
        **seen,
    )


def _processing(world: World) -> set[tuple[str, int]]:
    statement = "SELECT id::text, attempt FROM task WHERE status = 'processing'"
    return {(id, attempt) for id, attempt in query(world.database_url, statement)}


def _stream(world: World) -> tuple[int, int]:
    """Entries in the stream, and in hand; negative when there is no group."""
    with world.redis_client() as client:
        try:
            pending = client.xpending(world.redis_key, "tasksvc")["pending"]
        except redis.ResponseError:
            return -1, -1
        return client.xlen(world.redis_key), pending


def _counted(world: World) -> dict[str, int]:
    statuses = ("pending", "processing", "completed", "failed", "canceled")
    service = world.services[0]
    return {status: int(service.metric(f'task_status{{status="{status}"}}')) for status in statuses}
