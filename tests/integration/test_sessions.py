"""What a session is, whatever the environment, the role and a pooler say."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
import structlog

from tasksvc.domain.errors import MigrationFailed, StoreRefuses, StoreUnavailable
from tasksvc.embedded import EmbeddedPostgres
from tasksvc.store.addresses import Addresses
from tasksvc.store.database import Database, Session
from tasksvc.store.migrate import migrate
from tests.conftest import database_named
from tests.faults.pooler import Pooler
from tests.harness import eventually, query

OpenSession = Callable[[Database], Session]

_numbers = itertools.count(1)


@pytest.fixture
async def open_session() -> AsyncIterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def open_session(database: Database, name: str = "s") -> Session:
        sessions.append(database.session(name))
        return sessions[-1]

    yield open_session
    for session in sessions:
        await session.close()


@contextmanager
def made_database(url: str, options: str = "") -> Iterator[str]:
    name = f"sessions_{next(_numbers)}"
    query(url, f"CREATE DATABASE {name} {options}")
    try:
        yield database_named(url, name)
    finally:
        query(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with made_database(postgres.url) as url:
        yield url


def socket_of(url: str) -> str:
    parts = parse_qs(urlsplit(url).query)
    return f"{parts['host'][0]}/.s.PGSQL.{parts['port'][0]}"


SETTINGS = {
    "TimeZone": ("UTC", "'Asia/Tokyo'"),
    "client_encoding": ("UTF8", "LATIN1"),
    "transaction_isolation": ("read committed", None),
    "default_transaction_isolation": ("read committed", "'repeatable read'"),
    "statement_timeout": ("10s", "'1ms'"),
    "lock_timeout": ("5s", "'1ms'"),
    "client_connection_check_interval": ("2s", "0"),
    "enable_seqscan": ("off", "on"),
    "enable_indexscan": ("on", "off"),
    "plan_cache_mode": ("force_generic_plan", "auto"),
    "synchronous_commit": ("on", "off"),
}


async def settings_of(session: Session) -> dict[str, str]:
    names = list(SETTINGS)
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    ((*values,),) = await session.run(f"SELECT {columns}")
    return dict(zip(names, values, strict=True))


EXPECTED = {name: value for name, (value, _) in SETTINGS.items()}


async def test_role_with_other_defaults(
    postgres: EmbeddedPostgres, empty_url: str, open_session: OpenSession
) -> None:
    ((name,),) = query(empty_url, "SELECT current_database()")
    for setting, (_, default) in SETTINGS.items():
        if default is not None:
            query(
                postgres.url,  # not through the settings that it makes
                f"ALTER ROLE postgres IN DATABASE {name} SET {setting} = {default}",
            )

    assert await settings_of(open_session(Database(empty_url))) == EXPECTED


async def test_environment_with_other_defaults(
    empty_url: str, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv(
        "PGOPTIONS", "-c default_transaction_isolation=serializable -c statement_timeout=1h"
    )
    session = open_session(Database(empty_url))

    assert await settings_of(session) == EXPECTED
    rows = await session.run("SELECT '2100-01-01T08:00+09'::timestamptz, %(x)s", {"x": "é 😀"})
    assert rows == [(datetime(2099, 12, 31, 23, tzinfo=UTC), "é 😀")]


@pytest.mark.parametrize("refuses_options", [True, False])
async def test_pooler_by_sessions(
    postgres: EmbeddedPostgres, empty_url: str, open_session: OpenSession, refuses_options: bool
) -> None:
    ((name,),) = query(empty_url, "SELECT current_database()")
    socket = socket_of(postgres.url)
    with Pooler(socket, by_transactions=False, refuses_options=refuses_options) as pooler:
        database = Database(pooler.url(name))
        await migrate(database)
        session = open_session(database)

        assert await settings_of(session) == EXPECTED
        assert session.is_pooled
        await session.close()


async def test_pooler_by_transactions_is_refused(
    postgres: EmbeddedPostgres, empty_url: str
) -> None:
    ((name,),) = query(empty_url, "SELECT current_database()")
    with Pooler(socket_of(postgres.url), by_transactions=True) as pooler:
        for _ in range(3):
            with pytest.raises(StoreRefuses) as raised:
                await migrate(Database(pooler.url(name)))
            assert "pool_mode = session" in (raised.value.reason or "")

    assert query(empty_url, "SELECT to_regclass('schema_migrations')") == [(None,)]


async def test_options_that_a_pooler_refuses_are_named(postgres: EmbeddedPostgres) -> None:
    with Pooler(socket_of(postgres.url), by_transactions=False) as pooler:
        url = pooler.url("postgres") + "?options=-csearch_path%3Dpublic"
        with pytest.raises(StoreRefuses) as raised:
            await migrate(Database(url))

    assert raised.value.reason == "unsupported startup parameter: options"


async def test_tls_that_is_not_to_be_had_is_named(postgres: EmbeddedPostgres) -> None:
    with (
        Pooler(socket_of(postgres.url), by_transactions=False) as pooler,
        pytest.raises(StoreRefuses) as raised,
    ):
        await migrate(Database(pooler.url("postgres") + "?sslmode=require"))

    assert raised.value.reason == "server does not support SSL, but SSL was required"


@pytest.mark.parametrize(
    ("given", "plain", "lease"),
    [
        ("off", "on", "local"),
        ("local", "local", "local"),
        ("remote_write", "remote_write", "local"),
        ("on", "on", "local"),
        ("remote_apply", "remote_apply", "local"),
    ],
)
async def test_commits_are_on_disk_and_a_lease_waits_for_no_standby(
    empty_url: str,
    open_session: Callable[..., Session],
    given: str,
    plain: str,
    lease: str,
) -> None:
    database = Database(f"{empty_url}&options=-csynchronous_commit%3D{given}")
    for name, value in (("insert", plain), ("lease", lease)):
        session = open_session(database, name)
        assert await session.run("SHOW synchronous_commit") == [(value,)]


async def test_synchronous_commit_off_is_said(empty_url: str) -> None:
    with structlog.testing.capture_logs() as logs:
        await migrate(Database(f"{empty_url}&options=-csynchronous_commit%3Doff"))

    assert "synchronous_commit_off" in [line["action"] for line in logs]


# The encoding.


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
async def test_database_that_is_not_utf8_is_refused(
    postgres: EmbeddedPostgres, encoding: str
) -> None:
    options = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    with made_database(postgres.url, options) as url, pytest.raises(StoreRefuses) as raised:
        await migrate(Database(url))

    assert raised.value.reason == f"the database's encoding is {encoding}, and must be UTF8"


# The schema.


@pytest.mark.parametrize("schema", ["tasks", 'Ta"sk s', "a,b"])
async def test_tables_are_made_in_the_schema(empty_url: str, schema: str) -> None:
    quoted = '"{}"'.format(schema.replace('"', '""'))
    query(empty_url, f"CREATE SCHEMA {quoted}")
    database = Database(empty_url, schema=schema)

    assert await migrate(database)
    assert await migrate(database) == []
    found = query(empty_url, "SELECT schemaname FROM pg_tables WHERE tablename = 'task'")
    assert found == [(schema,)]


async def test_schema_that_is_not_there_is_refused(empty_url: str) -> None:
    with pytest.raises(StoreRefuses) as raised:
        await migrate(Database(empty_url, schema="nowhere"))

    assert raised.value.reason == "there is no schema 'nowhere' in this database"


# Rights.


@pytest.fixture
def role(postgres: EmbeddedPostgres) -> Iterator[str]:
    query(postgres.url, "CREATE ROLE reader LOGIN")
    yield "reader"
    query(postgres.url, "DROP ROLE reader")


def as_role(url: str, role: str) -> Database:
    return Database(url.replace("//postgres@", f"//{role}@"))


async def test_missing_right_is_named_at_the_start(
    postgres: EmbeddedPostgres, database_url: str, role: str
) -> None:
    database = as_role(database_url, role)

    async def refusal() -> str | None:
        with pytest.raises(StoreRefuses) as raised:
            await migrate(database)
        return raised.value.reason

    assert await refusal() == "permission denied for table schema_migrations"
    query(database_url, f"GRANT SELECT ON schema_migrations TO {role}")
    assert "may not SELECT, INSERT, UPDATE, DELETE in table worker" in (await refusal() or "")
    query(
        database_url,
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    )
    query(database_url, f"REVOKE UPDATE ON schedule FROM {role}")
    assert await refusal() == "the role 'reader' may not UPDATE in table schedule"
    query(database_url, f"GRANT UPDATE ON schedule TO {role}")
    assert await migrate(database) == []
    query(database_url, f"DROP OWNED BY {role}")


async def test_role_without_any_right_in_an_empty_database(empty_url: str, role: str) -> None:
    with pytest.raises(MigrationFailed, match="permission denied for schema public"):
        await migrate(as_role(empty_url, role))


# What a session gives up.

LOCK = 11


@contextmanager
def held_lock(url: str) -> Iterator[None]:
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_lock({LOCK})")
        yield
    connection.close()


def backends(url: str) -> list[int]:
    rows = query(
        url,
        """SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'tasksvc-%' ORDER BY pid""",
    )
    return [pid for (pid,) in rows]


async def test_what_a_session_gave_up_ends_before_it_goes_on(
    empty_url: str, open_session: OpenSession
) -> None:
    session = open_session(Database(empty_url, statement_timeout_seconds=0.1))
    with held_lock(empty_url):
        await session.run("SET statement_timeout = 0; SET lock_timeout = 0")
        (first,) = backends(empty_url)
        with pytest.raises(StoreUnavailable):
            await session.run(
                f"SET client_connection_check_interval = 0; SELECT pg_advisory_lock({LOCK})"
            )
        assert backends(empty_url) == [first]  # it has not been notified

        ((second,),) = await session.run("SELECT pg_backend_pid()")

        assert backends(empty_url) == [second]


async def test_what_a_session_gave_up_ends_when_it_is_closed(
    empty_url: str, open_session: OpenSession
) -> None:
    session = open_session(Database(empty_url))
    with held_lock(empty_url):
        await session.run("SET client_connection_check_interval = 0")
        waiting = asyncio.create_task(session.run(f"SELECT pg_advisory_lock({LOCK})"))
        await eventually(lambda: query(empty_url, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        waiting.cancel()
        await asyncio.wait([waiting])
        await session.close()

        await eventually(lambda: backends(empty_url) == [])


async def test_backends_that_do_not_end_are_few(empty_url: str, open_session: OpenSession) -> None:
    session = open_session(Database(empty_url, statement_timeout_seconds=0.05))
    frozen: set[int] = set()
    try:
        for _ in range(6):
            try:
                ((pid,),) = await session.run("SELECT pg_backend_pid()")
            except StoreUnavailable:
                continue
            frozen.add(pid)
            os.kill(pid, signal.SIGSTOP)
        assert len(frozen) == 2
        assert len(backends(empty_url)) <= 3
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    async def answers() -> bool:
        try:
            return bool(await session.run("SELECT 1"))
        except StoreUnavailable:
            return False

    await eventually(answers)
    await eventually(lambda: len(backends(empty_url)) == 1)


# The host.


async def test_name_of_the_host_is_resolved_once_for_all_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    answer = asyncio.Event()

    async def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        await answer.wait()
        return [(0, 0, 0, "", ("192.0.2.1", 0)), (0, 0, 0, "", ("192.0.2.2", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    addresses = Addresses({"host": "db.example"})
    with pytest.raises(TimeoutError):
        await addresses.find(0.01)
    asking = [asyncio.create_task(addresses.find(5)) for _ in range(3)]
    await asyncio.sleep(0)
    asking[0].cancel()
    answer.set()

    assert await asking[1] == await asking[2] == ["192.0.2.1", "192.0.2.2"]
    assert asked == ["db.example"]


@pytest.mark.parametrize(
    "dsn",
    [
        {},
        {"host": "/run/postgresql"},
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "fe80::1%eth0"},
        {"host": "db.example", "hostaddr": "192.0.2.1"},
    ],
)
async def test_what_is_no_name_is_not_resolved(dsn: dict[str, str]) -> None:
    assert await Addresses(dsn).find(1) == []


async def test_each_address_of_the_host_is_tried(
    postgres: EmbeddedPostgres, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("127.0.0.2", 0)), (0, 0, 0, "", ("127.0.0.1", 0))]

    with Pooler(socket_of(postgres.url), by_transactions=False) as pooler:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        url = f"postgresql://postgres@db.example:{pooler.port}/postgres"
        session = open_session(Database(url))

        assert await session.run("SELECT 1") == [(1,)]
        await session.close()
