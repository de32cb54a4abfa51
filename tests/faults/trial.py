"""One fault, with clients around it: the same world, checks and clients as the random runs."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from tests.faults import nemesis
from tests.faults.audit import is_rescue
from tests.faults.checker import check
from tests.faults.client import Client, OnceKeys
from tests.faults.evidence import drain, footprints, gather, largest, settle
from tests.faults.fault import Fault, Scene
from tests.faults.history import Evidence, Injection, Operation, Recovery, clocks_jumped, story
from tests.faults.world import World
from tests.harness import query

RECOVERY_SECONDS = 5.0
"""After the end of a fault the service creates and processes again within so long."""

_QUIET_OPERATIONS = 40
"""What the clients do before the fault begins."""

_HOLD_SECONDS = 8.0
"""Longer than any limit of a statement or a command. The random runs have more time."""

_STATUS = "SELECT status FROM task WHERE id = %s"

_seeds = count(1)
_probes = count(1)


def reset(world: World) -> None:
    """Nothing is left of the trial before."""
    nemesis.heal(world)
    recovery(world)
    drain(world, lambda text: None)
    query(world.database_url, "TRUNCATE task, task_event, worker_event, attempt, idempotency_key")
    world.effects_path.write_text("")


@contextmanager
def clients(world: World, operations: list[Operation], number: int = 4) -> Iterator[None]:
    """Clients that create, read and cancel, while the body runs."""
    urls = [service.url for service in world.services]
    seed = next(_seeds)
    over = threading.Event()
    once_keys = OnceKeys(seed)
    everybody = [Client(each, urls, seed, once_keys, operations) for each in range(1, number + 1)]

    async def load() -> None:
        await asyncio.gather(*(client.run(over.is_set) for client in everybody))

    thread = threading.Thread(target=lambda: asyncio.run(load()))
    thread.start()
    try:
        wait_for(lambda: len(operations) > _QUIET_OPERATIONS)
        yield
    finally:
        over.set()
        thread.join()


def survive(world: World, fault: Fault, name: str, hold_seconds: float = _HOLD_SECONDS) -> Evidence:
    """The evidence of one fault, each step of which holds for so long at most; AssertionError when
    an invariant did not hold."""
    reset(world)
    operations: list[Operation] = []
    recoveries = []
    scene = Scene(world, random.Random(name), lambda s: time.sleep(min(s, hold_seconds)))
    footprint = largest(footprints(world))
    with clients(world, operations):
        started = time.time()
        fault(scene)
        if not scene.seen.knows(name, started):
            scene.seen.injections.append(Injection(name, started, time.time()))
        ended = [each.process.returncode for each in world.services if each.process.poll()]
        assert not ended, f"a service ended with {ended}"
        nemesis.heal(world)
        recoveries.append(Recovery(name, recovery(world, operations)))
    drain(world, lambda text: None)
    settle(world, footprint)
    evidence = gather(
        world,
        seen=scene.seen,
        footprint=footprint,
        operations=operations,
        recoveries=recoveries,
        clocks_jumped=clocks_jumped([name]),
    )
    violations = check(evidence)
    assert not violations, "\n".join(map(str, violations[:10]))
    assert [o for o in operations if o.code == 201], "nothing was created"
    return evidence


def recovery(world: World, operations: list[Operation] | None = None) -> float:
    """The seconds until every service takes a task again, and it is completed."""
    began = time.monotonic()
    for service in world.services:
        while True:
            key = f"trial-{next(_probes)}"
            body = json.dumps({"content": json.dumps({"key": key})}).encode()
            started = time.time()
            try:
                code, _, answer = service.request(
                    "POST", "/task", body, {"Content-Type": "application/json"}
                )
            except OSError:
                code, answer = 0, b""
            id = json.loads(answer)["id"] if code == 201 else None
            if operations is not None:
                operations.append(
                    Operation(0, "create", key, id, started, time.time(), code or None)
                )
            if id is not None:
                break
            assert time.monotonic() - began < 4 * RECOVERY_SECONDS, "it takes no task"
            time.sleep(0.02)
        wait_for(lambda id=id: query(world.database_url, _STATUS, id) == [("completed",)])
    return time.monotonic() - began


def charge_nobody(evidence: Evidence) -> None:
    """Fails with the story of the first task that was charged for the death of a worker."""
    charged = [event.id for event in evidence.events if is_rescue(event)]
    assert not charged, "\n".join(
        [*story(evidence, charged[0]), *map(str, evidence.lapses), *_outages(evidence)]
    )


def _outages(evidence: Evidence) -> list[str]:
    words = ("postgres_", "statement_failed", "lapsed", "registered")
    lines = [line for line in evidence.logs.splitlines() if any(word in line for word in words)]
    return lines[-60:]


def wait_for(condition: Callable[[], object], within_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
