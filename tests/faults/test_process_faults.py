"""Whatever happens to the process itself, and however it is stopped."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.faults.conftest import StartServant
from tests.faults.nemesis import FAULTS, Scene
from tests.faults.trial import charge_nobody, survive
from tests.faults.world import LEASE_SECONDS, World
from tests.harness import ROOT, ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Effects = Callable[[], list[dict[str, Any]]]

ROWS = "SELECT status, attempt, failures FROM task ORDER BY id"


@pytest.mark.parametrize("name", sorted(name for name in FAULTS if name.startswith("service.")))
def test_nothing_is_lost_by(world: World, name: str) -> None:
    evidence = survive(world, FAULTS[name], name)

    if name.startswith("service.stop"):
        charge_nobody(evidence)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_at_once_and_come_back(world: World, number: int) -> None:
    def end_all(scene: Scene) -> None:
        for service in world.services:
            service.process.send_signal(number)
        for service in world.services:
            service.process.wait(20)
            service.spawn()

    evidence = survive(world, end_all, f"service.end_all_{number}")

    if number != signal.SIGKILL:
        charge_nobody(evidence)


async def test_handler_that_blocks_the_loop_for_longer_than_the_lease_costs_no_task_its_attempt(
    start_servant: StartServant,
) -> None:
    blocked, other = start_servant(), start_servant(TASK_CONSUMER_WORKERS=0)
    url = blocked.env["DATABASE_URL"]
    blocked.create('{"seconds": 0.5}')
    await eventually(lambda: blocked.metric("tasksvc_running") == 1)
    rescuer = start_servant()
    other.create('{"block": %s}' % (3 * LEASE_SECONDS))
    other.create()

    await eventually(lambda: {status for status, *_ in query(url, ROWS)} == {"completed"})

    assert query(url, ROWS) == [("completed", 1, 0)] * 3
    assert blocked.metric("tasksvc_results_fenced_total") == 0
    assert rescuer.metric("tasksvc_tasks_rescued_total") == 0
    outputs = blocked.output() + rescuer.output()
    assert "A handler blocks the event loop" in outputs
    assert "was declared dead" not in outputs


async def test_process_that_is_frozen_for_longer_than_the_lease_changes_nothing(
    start_servant: StartServant, effects: Effects
) -> None:
    zombie = start_servant()
    url = zombie.env["DATABASE_URL"]
    for _ in range(5):
        zombie.create('{"seconds": 1}')
    await eventually(lambda: zombie.metric("tasksvc_running") == 5)
    os.kill(zombie.process.pid, signal.SIGSTOP)
    other = start_servant()
    await eventually(lambda: query(url, ROWS) == [("completed", 2, 1)] * 5)

    os.kill(zombie.process.pid, signal.SIGCONT)

    await eventually(lambda: zombie.metric("tasksvc_running") == 0)
    assert query(url, ROWS) == [("completed", 2, 1)] * 5
    assert other.metric("task_processing_success_count") == 5
    assert zombie.metric("task_processing_success_count") == 0
    id = zombie.create()["id"]
    await eventually(lambda: zombie.task(id)["status"] == "completed", 5)


async def test_two_processes_that_start_at_the_same_moment_on_an_empty_database(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    where = {"DATABASE_URL": own_postgres.url, "REDIS_URL": own_redis.url}
    services = [start_servant(spawn=True, **where) for _ in range(4)]

    for service in services:
        service.wait_for_line("Ready")

    ids = [service.create()["id"] for service in services]
    await eventually(lambda: services[0].statuses(ids) == {"completed"}, 5)
    assert query(own_postgres.url, ROWS) == [("completed", 1, 0)] * 4
    assert len(query(own_postgres.url, "SELECT id FROM worker")) == 4
    output = "".join(service.output() for service in services)
    assert "Traceback" not in output
    applied = [int(count) for count in re.findall(r"Migrations applied: (\d+)", output)]
    assert sum(applied) == len(list((ROOT / "migrations").glob("[0-9]*.sql")))


@pytest.mark.parametrize("away", ["postgres", "redis", "both"])
@pytest.mark.parametrize(
    "orders", ["{}", '{"seconds": 60}', '{"seconds": 60, "ignores_cancel": 1}']
)
async def test_stop_while_a_server_is_away(
    start_servant: StartServant,
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    away: str,
    orders: str,
) -> None:
    where = {"DATABASE_URL": own_postgres.url, "REDIS_URL": own_redis.url}
    service = start_servant(TASKSVC_GRACE_SECONDS=0.5, **where)
    service.create(orders)
    if "60" in orders:
        await eventually(lambda: service.metric("tasksvc_running") == 1)
    if away != "redis":
        own_postgres.kill()
    if away != "postgres":
        own_redis.kill()
    started = time.monotonic()

    assert service.stop() == 0

    assert time.monotonic() - started < 15
    if away != "redis":
        own_postgres.start()
    query(own_postgres.url, "UPDATE task SET content = '{}' WHERE finished_at IS NULL")
    start_servant(**where)
    await eventually(lambda: query(own_postgres.url, ROWS)[0][0] == "completed")
    ((_, _, failures),) = query(own_postgres.url, ROWS)
    assert failures <= (away != "redis"), "charged only if it could not say good-bye"


@pytest.mark.parametrize("said", ["", "PostgreSQL answers", "Redis answers", "Worker registered"])
async def test_stop_during_the_start(start_servant: StartServant, said: str) -> None:
    service = start_servant(spawn=True)
    with contextlib.suppress(AssertionError):
        service.wait_for_line(said)

    code = service.stop(within_seconds=15)

    # Before there is a handler, the signal's own way is taken.
    assert code in (0, -signal.SIGTERM)
    assert "Traceback" not in service.output()
    # One that was just registering leaves its row to a rescuer.
    other = start_servant()
    other.create()
    url = other.env["DATABASE_URL"]
    await eventually(lambda: query(url, ROWS) == [("completed", 1, 0)], 5)
    await eventually(lambda: len(query(url, "SELECT id FROM worker")) == 1, 8)


async def test_third_signal_ends_it_where_it_stands(start_servant: StartServant) -> None:
    service = start_servant(TASKSVC_GRACE_SECONDS=60)
    service.create('{"seconds": 60, "ignores_cancel": true}')
    await eventually(lambda: service.metric("tasksvc_running") == 1)

    def is_gone() -> bool:
        service.process.send_signal(signal.SIGTERM)
        return service.process.poll() is not None

    await eventually(is_gone, 2)

    assert service.process.returncode == 1
    url = service.env["DATABASE_URL"]
    query(url, "UPDATE task SET content = 'x'")
    start_servant()
    await eventually(lambda: query(url, ROWS) == [("completed", 2, 1)])


async def test_process_without_file_descriptors_comes_back(start_servant: StartServant) -> None:
    service = start_servant()
    pid = service.process.pid
    limit = len(os.listdir(f"/proc/{pid}/fd")) + 40  # its own connections need some 20 more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))
        await eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) == limit)
        assert service.process.poll() is None

    await eventually(lambda: can_create(service), 5)

    url = service.env["DATABASE_URL"]  # a create that got no answer may have made a task too
    await eventually(lambda: set(query(url, ROWS)) == {("completed", 1, 0)}, 5)


def can_create(service: ServiceProcess) -> bool:
    try:
        return bool(service.create())
    except OSError:
        return False
