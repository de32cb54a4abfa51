"""Bringing the schema up to date: once, however many processes start at the same moment."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import structlog

from tasksvc.domain.errors import MigrationFailed, StoreUnavailable
from tasksvc.embedded import EmbeddedPostgres
from tasksvc.store import migrate as migrate_module
from tasksvc.store.database import Database, Session
from tasksvc.store.migrate import BASELINE, LAST_BEFORE_BASELINE, migrate
from tests.conftest import database_named
from tests.harness import ROOT, eventually, query
from tests.schema import PG_DUMP, SCHEMA, dump

_numbers = itertools.count(1)

WAIT_AT_GATE = "SELECT pg_advisory_xact_lock_shared(7);"


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with nothing in it."""
    name = f"empty_{next(_numbers)}"
    query(postgres.url, f"CREATE DATABASE {name}")
    yield database_named(postgres.url, name)
    query(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


def use_migrations(monkeypatch: pytest.MonkeyPatch, *migrations: tuple[str, str]) -> None:
    monkeypatch.setattr(migrate_module, "_migrations", lambda: list(migrations))


def applied(url: str) -> list[str]:
    return [name for (name,) in query(url, "SELECT name FROM schema_migrations ORDER BY name")]


async def test_every_migration_is_applied_once(empty_url: str) -> None:
    files = sorted(path.name for path in (ROOT / "migrations").glob("[0-9]*.sql"))

    assert await migrate(Database(empty_url)) == files
    assert applied(empty_url) == files
    assert await migrate(Database(empty_url)) == []
    assert query(empty_url, "SELECT count(*) FROM task") == [(0,)]


@pytest.mark.slow
async def test_starters_at_the_same_moment_all_succeed(empty_url: str) -> None:
    for _ in range(5):
        starters = [migrate(Database(empty_url)) for _ in range(4)]
        done = [name for names in await asyncio.gather(*starters) for name in names]

        assert sorted(done) == applied(empty_url)
        query(empty_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")


async def test_starter_that_loses_its_connection_harms_no_other(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_migrations(monkeypatch, ("0001_gate.sql", WAIT_AT_GATE + "CREATE TABLE made (x int)"))
    gate = psycopg2.connect(empty_url)
    with gate.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
        gate.commit()
        starters = [asyncio.create_task(migrate(Database(empty_url))) for _ in range(2)]
        waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = %s"
        ((pid,),) = await eventually(lambda: query(empty_url, waiting, "advisory"))
        await eventually(lambda: query(empty_url, waiting, "transactionid"))  # the other one
        query(empty_url, "SELECT pg_terminate_backend(%s, 5000)", pid)
        await eventually(lambda: query(empty_url, waiting, "transactionid"))
        cursor.execute("SELECT pg_advisory_unlock(7)")
        gate.commit()
    gate.close()

    assert sorted(await asyncio.gather(*starters)) == [[], ["0001_gate.sql"]]


async def test_answer_that_was_lost_is_not_a_failure(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session._run
    lost: list[str] = []

    async def lose_first_answer(self: Session, statement: str, parameters: None) -> object:
        rows = await run(self, statement, parameters)
        if statement.startswith("INSERT INTO schema_migrations") and not lost:
            lost.append(statement)
            self._drop()
            raise psycopg2.OperationalError("the connection is gone")
        return rows

    monkeypatch.setattr(Session, "_run", lose_first_answer)
    await migrate(Database(empty_url))

    assert lost
    assert BASELINE in applied(empty_url)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CREATE TABL oops", 'syntax error at or near "TABL"'),
        ("SELECT 1/0", "PostgreSQL does not take it"),
        ("CREATE UNIQUE INDEX ON half (x); INSERT INTO half VALUES (1), (1)", None),
        ("DO $$ BEGIN RAISE 'not today'; END $$", "not today"),
    ],
)
async def test_broken_migration_is_one_clear_error_and_leaves_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, text: str, reason: str | None
) -> None:
    use_migrations(
        monkeypatch, ("0001_good.sql", ""), ("0002_bad.sql", f"CREATE TABLE half (x int); {text}")
    )
    message = rf"^0002_bad\.sql can't be applied: {reason or '.*'}\.$"
    with pytest.raises(MigrationFailed, match=message):
        await migrate(Database(empty_url))

    assert applied(empty_url) == ["0001_good.sql"]
    assert query(empty_url, "SELECT to_regclass('half')") == [(None,)]


async def test_database_that_we_may_not_use_is_one_clear_error(
    postgres: EmbeddedPostgres, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(empty_url, "DROP SCHEMA public CASCADE")
    with pytest.raises(MigrationFailed, match=r"^schema_migrations can't be applied: no schema"):
        await migrate(Database(empty_url))


async def test_busy_database_is_only_unavailable(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_migrations(monkeypatch, ("0001.sql", "SET LOCAL lock_timeout = 20;" + WAIT_AT_GATE))
    gate = psycopg2.connect(empty_url)
    with gate.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
        with pytest.raises(StoreUnavailable) as raised:
            await migrate(Database(empty_url))
    gate.close()

    assert type(raised.value) is StoreUnavailable
    assert await migrate(Database(empty_url)) == ["0001.sql"]


async def test_schema_that_is_up_to_date_is_not_written_to(empty_url: str) -> None:
    await migrate(Database(empty_url))
    query(
        empty_url,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END $$",
    )

    with structlog.testing.capture_logs() as logs:
        assert await migrate(Database(empty_url)) == []
    assert [line["action"] for line in logs] == ["postgres_up"]


SCHEMAS = sorted((Path(__file__).parent / "schemas").glob("*.sql"))
"""The schema of each version, as `make schema` wrote it, with the migrations that it had."""

TASK = """
INSERT INTO task (id, content, max_attempts)
VALUES ('00000000-0000-7000-8000-000000000001', 'kept', 3)
"""

needs_pg_dump = pytest.mark.skipif(
    not PG_DUMP.exists()
    or " 18." not in subprocess.run([PG_DUMP, "--version"], capture_output=True, text=True).stdout,
    reason="schema.sql is written by pg_dump 18",
)


def restore(url: str, schema: Path) -> None:
    """Makes a database as that version left it, with a task."""
    text = schema.read_text()
    (names,) = re.findall(r"^-- migrations: (.*)$", text, re.MULTILINE)
    query(url, f"SET check_function_bodies = off; {text}")
    for name in names.split():
        query(url, "INSERT INTO schema_migrations (name) VALUES (%s)", name)
    query(url, TASK)


@needs_pg_dump
async def test_schema_is_written_down(empty_url: str) -> None:
    await migrate(Database(empty_url))

    assert dump(empty_url) == SCHEMA.read_text(), "make schema"


@needs_pg_dump
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.stem)
async def test_every_version_is_upgraded_and_keeps_its_tasks(empty_url: str, schema: Path) -> None:
    restore(empty_url, schema)

    await migrate(Database(empty_url))

    assert dump(empty_url) == SCHEMA.read_text()
    assert query(empty_url, "SELECT content FROM task") == [("kept",)]
    assert await migrate(Database(empty_url)) == []


async def test_database_before_the_baseline_is_refused(empty_url: str) -> None:
    restore(empty_url, SCHEMAS[0])
    query(empty_url, "DELETE FROM schema_migrations WHERE name > '0016'")

    with pytest.raises(
        MigrationFailed, match=f"stands at 0015_.*; bring it to {LAST_BEFORE_BASELINE}"
    ):
        await migrate(Database(empty_url))

    assert BASELINE not in applied(empty_url)
