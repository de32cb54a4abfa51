"""Whatever happens to PostgreSQL: what it acknowledged is kept, and no task is charged."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tasksvc.embedded import EmbeddedPostgres
from tests.faults.conftest import StartServant
from tests.faults.nemesis import FAULTS, Scene
from tests.faults.trial import charge_nobody, survive, wait_for
from tests.faults.world import LEASE_SECONDS, World
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

ROWS = "SELECT status, attempt, failures FROM task ORDER BY id"


@pytest.mark.parametrize("name", sorted(name for name in FAULTS if name.startswith("postgres.")))
def test_nothing_is_lost_by(world: World, name: str) -> None:
    if name == "postgres.full_disk" and not world.has_disk:
        pytest.skip("only root can mount a small disk")

    evidence = survive(world, FAULTS[name], name)

    charge_nobody(evidence)


@contextlib.contextmanager
def table_locked(url: str, table: str) -> Iterator[None]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table}")
        yield
    finally:
        connection.close()


@pytest.mark.parametrize("table", ["task", "worker"])
async def test_table_that_is_locked_for_longer_than_a_lease_costs_no_worker_a_task(
    start_servant: StartServant, table: str
) -> None:
    lease_seconds = 4
    limits = {"TASKSVC_LEASE_SECONDS": lease_seconds, "TASKSVC_STATEMENT_TIMEOUT_SECONDS": 2}
    services = [start_servant(**limits) for _ in range(2)]
    url = services[0].env["DATABASE_URL"]
    for service in services:
        service.create('{"seconds": 9}')
        service.create('{"seconds": 0.5}')
    await eventually(lambda: sum(each.metric("tasksvc_running") for each in services) >= 2)

    with table_locked(url, table):
        since = time.monotonic()
        wait_for(lambda: time.monotonic() > since + 1.5 * lease_seconds)

    await eventually(lambda: query(url, ROWS) == [("completed", 1, 0)] * 4)
    id = services[0].create()["id"]
    await eventually(lambda: services[0].task(id)["status"] == "completed", 5)


@pytest.mark.parametrize("how", ["kill", "stop", "freeze"])
async def test_outage_that_is_longer_than_the_lease_charges_no_living_worker(
    start_servant: StartServant, own_postgres: EmbeddedPostgres, how: str
) -> None:
    services = [start_servant(DATABASE_URL=own_postgres.url) for _ in range(2)]
    for service in services:
        service.create('{"seconds": 12}')
    await eventually(lambda: sum(service.metric("tasksvc_running") for service in services) == 2)
    short = [service.create('{"seconds": 0.5}')["id"] for service in services]
    backends = [pid for (pid,) in query(own_postgres.url, "SELECT pid FROM pg_stat_activity")]
    since = time.monotonic()
    match how:
        case "kill":
            own_postgres.kill()
        case "stop":
            own_postgres.stop()
        case "freeze":
            signal_all([own_postgres.pid, *backends], signal.SIGSTOP)
    wait_for(lambda: time.monotonic() > since + 3 * LEASE_SECONDS)
    if how == "freeze":
        signal_all([own_postgres.pid, *backends], signal.SIGCONT)
    else:
        own_postgres.start()

    await eventually(lambda: try_statuses(services[0], short) == {"completed"}, 5)

    await eventually(lambda: {row[0] for row in query(own_postgres.url, ROWS)} == {"completed"}, 20)
    assert query(own_postgres.url, ROWS) == [("completed", 1, 0)] * 4
    assert sum(service.metric("tasksvc_tasks_rescued_total") for service in services) == 0


def try_statuses(service: ServiceProcess, ids: list[str]) -> set[str]:
    try:
        return service.statuses(ids)
    except AssertionError:  # 503
        return set()


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def test_dead_worker_is_still_found_after_an_outage(
    start_servant: StartServant, own_postgres: EmbeddedPostgres
) -> None:
    doomed = start_servant(DATABASE_URL=own_postgres.url)
    doomed.create('{"seconds": 60}')
    await eventually(lambda: doomed.metric("tasksvc_running") == 1)
    other = start_servant(DATABASE_URL=own_postgres.url)
    own_postgres.kill()
    doomed.kill()
    own_postgres.start()

    await eventually(lambda: try_rows(own_postgres.url) == [("completed", 2, 1)], 8)
    assert other.metric("tasksvc_tasks_rescued_total") == 1


def try_rows(url: str) -> list[tuple[object, ...]]:
    try:
        return query(url, ROWS)
    except psycopg2.OperationalError:
        return []


@pytest.mark.parametrize("limit", ["statement_timeout = 1", "lock_timeout = 1"])
def test_role_with_an_impatient_limit(world: World, limit: str) -> None:
    """One millisecond: whatever is not quick enough is tried again, and nothing is lost by it."""

    def restrict(scene: Scene) -> None:
        query(world.database_url, f"ALTER ROLE service SET {limit}")
        query(
            world.database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'",
        )
        scene.hold(1.5)
        query(world.database_url, "ALTER ROLE service RESET ALL")

    evidence = survive(world, restrict, f"postgres.{limit}")

    charge_nobody(evidence)


async def test_server_with_few_connections_serves_one_process(
    start_servant: StartServant, tmp_path: Path
) -> None:
    options = {"max_connections": "12", "superuser_reserved_connections": "0"}
    with EmbeddedPostgres(tmp_path / "small-postgres", options=options) as server:
        service = start_servant(DATABASE_URL=server.url)
        held = []
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                held.append(psycopg2.connect(server.url))
        codes = {service.request("GET", "/health")[0] for _ in range(3)}
        assert codes <= {200, 503}
        for connection in held:
            connection.close()

        id = service.create()["id"]

        await eventually(lambda: service.task(id)["status"] == "completed", 5)


async def test_long_transaction_in_the_background_stops_nothing(
    start_servant: StartServant,
) -> None:
    service = start_servant()
    url = service.env["DATABASE_URL"]
    connection = psycopg2.connect(url)
    connection.set_session(isolation_level="REPEATABLE READ")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM task")
        for _ in range(100):
            service.create()
        await eventually(
            lambda: query(url, "SELECT count(*) FROM task WHERE status = 'completed'") == [(100,)]
        )
    connection.close()
    assert query(url, "SELECT DISTINCT attempt, failures FROM task") == [(1, 0)]
