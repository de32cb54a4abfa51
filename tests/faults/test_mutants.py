"""The checker is itself checked: the service with one guard taken out has to turn it red.

Each scenario is one that the whole service survives (the test with no mutant), and that a mutant
does not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import nemesis  # noqa: F401 - it knows all faults
from tests.faults.checker import check
from tests.faults.evidence import drain, footprints, gather, largest, sample, settle
from tests.faults.fault import FAULTS, Scene
from tests.faults.handlers import THREAD_KIND
from tests.faults.history import Evidence, Operation, Sample, Seen
from tests.faults.mutants import MUTANTS
from tests.faults.orders import NARROW_QUEUE
from tests.faults.world import LEASE_SECONDS, World
from tests.harness import ServiceProcess, query

pytestmark = pytest.mark.slow


class Story:
    """A scenario's one client, and what it saw."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.operations: list[Operation] = []
        self.samples: list[Sample] = []
        self.seen = Seen()

    def create(
        self,
        service: ServiceProcess,
        options: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        **orders: object,
    ) -> str:
        orders.setdefault("key", str(len(self.operations)))
        body = json.dumps({"content": json.dumps(orders), **(options or {})}).encode()
        started = time.time()
        code, _, answer = service.request(
            "POST", "/task", body, {"Content-Type": "application/json", **(headers or {})}
        )
        assert code in (200, 201), answer
        task = json.loads(answer)
        self._saw("create", str(orders["key"]), task["id"], started, code, task["status"])
        return str(task["id"])

    def cancel(self, service: ServiceProcess, id: str) -> None:
        started = time.time()
        code, _, body = service.request("PATCH", f"/task/{id}/cancel")
        status = json.loads(body)["status"] if code == 200 else None
        self._saw("cancel", "", id, started, code, status)

    def wait_for(self, condition: str, count: int = 1) -> None:
        """Until so many tasks meet the condition."""
        statement = f"SELECT count(*) FROM task WHERE {condition}"  # noqa: S608
        deadline = time.monotonic() + 15
        while query(self.world.database_url, statement) < [(count,)]:
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def _saw(
        self, verb: str, key: str, id: str, started: float, code: int, status: str | None
    ) -> None:
        self.operations.append(Operation(1, verb, key, id, started, time.time(), code, status))


def zombie(story: Story) -> None:
    """A worker sleeps over its lease, and comes back with a result that is out of date."""
    first, second = story.world.services
    second.kill()
    story.create(first, seconds=1, then_seconds=4)
    story.wait_for("status = 'processing'")
    os.kill(first.process.pid, signal.SIGSTOP)
    second.start()
    story.wait_for("attempt = 2 AND status = 'processing'")
    time.sleep(1)
    os.kill(first.process.pid, signal.SIGCONT)


def trimmed(story: Story) -> None:
    """Entries are gone from the stream before anybody read them."""
    first, second = story.world.services
    second.kill()  # the two would have places for all of them
    for _ in range(60):
        story.create(first, seconds=1)
    with story.world.redis_client() as client:
        client.xtrim(story.world.redis_key, maxlen=0, approximate=False)
    second.start()


def watched(story: Story) -> None:
    """Nothing is broken. Tasks of this kind don't start with their create."""
    for _ in range(5):
        story.create(story.world.services[0], {"kind": THREAD_KIND}, seconds=1)
    story.wait_for("status = 'processing'")
    story.samples = sample(story.world, 0.5)


def late_cancel(story: Story) -> None:
    """A cancel comes after the end, and the database does not guard itself."""
    query(story.world.database_url, "DROP TRIGGER task_guard ON task")
    id = story.create(story.world.services[0])
    story.wait_for("status = 'completed'")
    story.cancel(story.world.services[0], id)


def entry_before_the_group(story: Story) -> None:
    """An entry comes into a stream that has lost its group."""
    for service in story.world.services:
        service.kill()
    with story.world.redis_client() as client:
        client.flushall()
        client.xadd(story.world.redis_key, {"id": str(uuid.uuid4())})
    for service in story.world.services:
        service.start()


def death_beside_the_living(story: Story) -> None:
    """One worker dies while both run something."""
    for _ in range(40):
        story.create(story.world.services[0], seconds=LEASE_SECONDS * 2)
    story.wait_for("status = 'processing'", 40)
    story.world.services[0].kill()
    story.wait_for("attempt = 2")
    story.world.services[0].start()


def options(story: Story) -> None:
    """Each option is put to the test once, and nothing is broken."""
    first, second = story.world.services
    query(story.world.database_url, "DROP INDEX task_unique_key")
    due = time.time() + 2
    early = story.create(first, {"delay_seconds": 2}, not_before=due)
    with story.world.redis_client() as client:  # whatever rings for it now
        client.xadd(story.world.redis_key, {"id": early})
    for _ in range(3):
        story.create(first, {"queue": NARROW_QUEUE}, seconds=0.2)
        story.create(second, {"queue": NARROW_QUEUE}, seconds=0.2)
    for service in (first, second):
        story.create(service, {}, {"Idempotency-Key": "once"}, key="once")
        story.create(service, {"unique_key": "one"}, seconds=1)
    story.create(first, {"max_attempts": 2}, raises="told to", until=4)


def beside(fault: str) -> Callable[[Story], None]:
    """Among good tasks there is a bad client, or there are bad handlers."""

    def scenario(story: Story) -> None:
        FAULTS[fault](Scene(story.world, random.Random(1), seen=story.seen))

    return scenario


bad_bodies = beside("client.oversized_bodies")

SCENARIOS: dict[str, tuple[Callable[[Story], None], str]] = {
    "no_fence": (zombie, "result_is_of_the_current_attempt"),
    "no_watermark": (trimmed, "every_task_ends"),
    "acknowledge_first": (watched, "finished_before_acknowledged"),
    "cancel_anything": (late_cancel, "final_once"),
    "group_from_the_end": (entry_before_the_group, "stream_is_empty_at_the_end"),
    "rescue_the_living": (death_beside_the_living, "holder_keeps_its_tasks"),
    "uncharged_rescue": (death_beside_the_living, "attempts_are_bounded"),
    "claim_early": (options, "nothing_starts_early"),
    "forget_keys": (options, "a_key_is_one_task"),
    "uncounted_queue": (options, "queue_keeps_its_limit"),
    "start_beyond_the_limit": (options, "queue_keeps_its_limit"),
    "endless_attempts": (options, "attempts_are_bounded"),
    "twice_alive": (options, "unique_key_has_one_live_task"),
    "lapse_while_blocked": (beside("handler.blocks"), "neighbours_are_not_charged"),
    "hold_the_loop": (bad_bodies, "living_services_answer"),
    "keep_bodies": (bad_bodies, "memory_comes_back"),
    "fall_over": (bad_bodies, "bad_clients_are_refused"),
    "free_runs": (beside("handler.poison"), "nothing_runs_for_free"),
    "raw_lines": (beside("handler.logs"), "log_lines_are_json"),
}


def play(scenario: Callable[[Story], None], folder: Path) -> Evidence:
    with World(folder, services=2) as world:
        story = Story(world)
        footprint = largest(footprints(world))
        scenario(story)
        drain(world, lambda text: None, within_seconds=12)
        settle(world, footprint, within_seconds=5)
        return gather(
            world,
            operations=story.operations,
            samples=story.samples,
            seen=story.seen,
            footprint=footprint,
        )


def test_every_mutant_has_a_scenario() -> None:
    assert set(SCENARIOS) == set(MUTANTS)


@pytest.mark.parametrize("mutant", SCENARIOS)
def test_mutant_turns_the_checker_red(
    mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, invariant = SCENARIOS[mutant]
    monkeypatch.setenv("MUTANT", mutant)

    violations = check(play(scenario, tmp_path))

    assert invariant in {violation.invariant for violation in violations}


SHOWN_ELSEWHERE = "beside.<locals>"
"""In test_bad_neighbours.py."""


@pytest.mark.parametrize(
    "scenario",
    dict.fromkeys(
        each for each, _ in SCENARIOS.values() if SHOWN_ELSEWHERE not in each.__qualname__
    ),
)
def test_whole_service_keeps_it_green(scenario: Callable[[Story], None], tmp_path: Path) -> None:
    assert check(play(scenario, tmp_path)) == []
