"""The seam to PostgreSQL, and all that can go wrong there."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import psycopg2
import pytest
import structlog

from tasksvc.domain.errors import DataRejected, StatementRefused, StoreUnavailable
from tasksvc.embedded import EmbeddedPostgres
from tasksvc.store import database as database_module
from tasksvc.store.database import Database, Session
from tasksvc.store.queries import Prepared
from tests.conftest import database_named
from tests.harness import create_database, eventually, query

GATE = 7
"""The number of an advisory lock that the test holds in its hand."""

WAIT_AT_GATE = f"SELECT pg_advisory_xact_lock_shared({GATE})"


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """One for all: these tests are about connections, and each has its own."""
    create_database(postgres.url, "seam", template)
    yield database_named(postgres.url, "seam")
    query(postgres.url, "DROP DATABASE seam WITH (FORCE)")


@pytest.fixture(scope="module", autouse=True)
def _no_connection_is_lost() -> Iterator[None]:
    yield
    gc.collect()  # a connection that was left open warns now


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url)


@pytest.fixture
async def open_session() -> AsyncIterator[Callable[[Database], Session]]:
    sessions: list[Session] = []

    def open_session(database: Database) -> Session:
        sessions.append(database.session(f"s{len(sessions)}"))
        return sessions[-1]

    yield open_session
    for session in sessions:
        await session.close()


@pytest.fixture
def session(database: Database, open_session: Callable[[Database], Session]) -> Session:
    return open_session(database)


@contextmanager
def held_gate(url: str) -> Iterator[Callable[[], None]]:
    """Statements wait at the gate until it is opened."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_lock({GATE})")
        yield lambda: cursor.execute(f"SELECT pg_advisory_unlock({GATE})")
    connection.close()


async def pid_at_gate(url: str) -> int:
    def waiting() -> list[tuple[int]]:
        return query(url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

    ((pid,),) = await eventually(waiting)
    return pid


def connections(url: str) -> int:
    ((count,),) = query(
        url,
        """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'tasksvc-%'""",
    )
    return count


@contextmanager
def shut(postgres: EmbeddedPostgres, url: str) -> Iterator[None]:
    """The database takes no connections, and ends those that it has."""
    ((name,),) = query(url, "SELECT current_database()")
    query(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    query(
        postgres.url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
        name,
    )
    yield
    query(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


class TestRun:
    async def test_rows_of_a_statement(self, session: Session) -> None:
        assert await session.run("SELECT %(a)s, 'x' AS b", {"a": 1}) == [(1, "x")]

    async def test_statement_without_rows(self, session: Session) -> None:
        assert await session.run("CREATE TEMPORARY TABLE t (x int)") == []
        assert await session.run("SELECT x FROM t") == []

    async def test_callers_of_one_session_take_turns(self, session: Session) -> None:
        found = await asyncio.gather(
            *(session.run("SELECT %(n)s FROM pg_sleep(0.001)", {"n": n}) for n in range(20))
        )

        assert found == [[(n,)] for n in range(20)]

    async def test_settings(self, database_url: str, session: Session) -> None:
        rows = await session.run(
            """SELECT current_setting('TimeZone'), current_setting('statement_timeout'),
            current_setting('lock_timeout'), current_setting('enable_seqscan'),
            current_setting('client_connection_check_interval')"""
        )

        assert rows == [("UTC", "10s", "5s", "off", "2s")]

    async def test_session_has_one_connection_and_closes_it(
        self, database_url: str, session: Session
    ) -> None:
        await asyncio.gather(*(session.run("SELECT 1") for _ in range(5)))
        await eventually(lambda: connections(database_url) == 1)
        await session.close()

        await eventually(lambda: connections(database_url) == 0)
        assert await session.run("SELECT 1") == [(1,)]


class TestRefusal:
    @pytest.mark.parametrize(
        ("statement", "value"),
        [
            ("SELECT %(value)s::text", "nul \0"),
            ("SELECT %(value)s::text", "half a pair \ud83d"),
            ("SELECT %(value)s::jsonb", '"\\u0000"'),
            ("SELECT %(value)s::int", "99999999999"),
            ("SELECT %(value)s::uuid", "no id"),
            ("INSERT INTO worker (id, name, expires_at) VALUES (%(value)s, NULL, now())", None),
        ],
    )
    async def test_value_that_does_not_fit(
        self, database: Database, session: Session, statement: str, value: object
    ) -> None:
        ((pid,),) = await session.run("SELECT pg_backend_pid()")
        with pytest.raises(DataRejected):
            await session.run(statement, {"value": value})

        assert await session.run("SELECT pg_backend_pid()") == [(pid,)]
        assert database.is_up

    @pytest.mark.parametrize("statement", ["SELEC 1", "SELECT no_column", "SELECT 1 FROM nowhere"])
    async def test_wrong_statement(
        self, database: Database, session: Session, statement: str
    ) -> None:
        with (
            structlog.testing.capture_logs() as logs,
            pytest.raises(
                StatementRefused, match=r"^PostgreSQL can't run this statement\.$"
            ) as raised,
        ):
            await session.run(statement)

        assert raised.value.reason
        assert raised.value.reason in [line.get("reason") for line in logs]
        assert database.is_up
        assert await session.run("SELECT 1") == [(1,)]


class TestCancellation:
    """aiopg reports a statement that the server ended as if the task had been canceled."""

    async def test_time_limit_of_the_server(self, database: Database, session: Session) -> None:
        await session.run("SET statement_timeout = 20")
        with pytest.raises(StoreUnavailable):
            await session.run("SELECT pg_sleep(30)")

        assert database.is_up
        assert await session.run("SHOW statement_timeout") == [("10s",)]

    async def test_statement_that_an_operator_cancels(
        self, database_url: str, session: Session
    ) -> None:
        with held_gate(database_url):
            running = asyncio.create_task(session.run(WAIT_AT_GATE))
            query(database_url, "SELECT pg_cancel_backend(%s)", await pid_at_gate(database_url))
            with pytest.raises(StoreUnavailable):
                await running

        assert not running.cancelled()
        assert await session.run("SELECT 1") == [(1,)]

    async def test_real_cancel_cancels(self, database_url: str, session: Session) -> None:
        with held_gate(database_url):
            running = asyncio.create_task(session.run(WAIT_AT_GATE))
            await pid_at_gate(database_url)
            running.cancel()
            await asyncio.wait([running])

        assert running.cancelled()
        assert await session.run("SELECT 1") == [(1,)]

    async def test_canceled_while_connecting_leaves_nothing_open(
        self, database_url: str, session: Session
    ) -> None:
        for ticks in range(12):
            connecting = asyncio.create_task(session.run("SELECT 1"))
            for _ in range(ticks):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            await session.close()

        await eventually(lambda: connections(database_url) == 0)


class TestHealing:
    async def test_connection_that_died_idle(
        self, database_url: str, database: Database, session: Session
    ) -> None:
        ((pid,),) = await session.run("SELECT pg_backend_pid()")
        query(database_url, "SELECT pg_terminate_backend(%s, 5000)", pid)
        up_since = database.up_seconds

        ((other,),) = await session.run("SELECT pg_backend_pid()")
        assert other != pid
        assert database.up_seconds >= up_since > 0

    async def test_connection_that_dies_under_a_statement(
        self, database_url: str, session: Session
    ) -> None:
        await session.run("SELECT 1")
        with held_gate(database_url) as open_gate:
            running = asyncio.create_task(session.run(f"{WAIT_AT_GATE}; SELECT 2"))
            first = await pid_at_gate(database_url)
            query(database_url, "SELECT pg_terminate_backend(%s, 5000)", first)
            assert await pid_at_gate(database_url) != first
            open_gate()

            assert await running == [(2,)]
            assert session.runs_again == 1

    async def test_connection_that_always_dies_is_given_up(
        self, database_url: str, session: Session
    ) -> None:
        await session.run("SELECT 1")
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable):
                await session.run("SELECT pg_terminate_backend(pg_backend_pid())")

        assert await session.run("SELECT 1") == [(1,)]

    async def test_deadlock_is_run_again(self, database_url: str, session: Session) -> None:
        query(database_url, "CREATE TABLE t AS SELECT 1 AS id, 0 AS n UNION SELECT 2, 0")
        await session.run("SET deadlock_timeout = '10ms'")
        other = psycopg2.connect(database_url)
        with other.cursor() as cursor, held_gate(database_url) as open_gate:
            cursor.execute("SET LOCAL deadlock_timeout = '1min'")
            cursor.execute("UPDATE t SET n = n + 1 WHERE id = 2")
            update = "UPDATE t SET n = n + 10 WHERE id = "
            running = asyncio.create_task(session.run(f"{update} 1; {WAIT_AT_GATE}; {update} 2"))
            await pid_at_gate(database_url)

            def finish() -> None:
                cursor.execute("UPDATE t SET n = n + 1 WHERE id = 1")
                other.commit()

            blocked = threading.Thread(target=finish)
            blocked.start()
            await eventually(
                lambda: query(
                    database_url,
                    "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted",
                )
            )
            open_gate()
            await running
            blocked.join()
        other.close()

        assert query(database_url, "SELECT n FROM t") == [(11,), (11,)]

    async def test_lock_that_is_never_free(
        self, database_url: str, database: Database, session: Session
    ) -> None:
        await session.run("SET lock_timeout = '20ms'")
        with held_gate(database_url):
            with pytest.raises(StoreUnavailable) as raised:
                await session.run(WAIT_AT_GATE)

            assert type(raised.value) is StoreUnavailable
            assert database.is_up

    async def test_frozen_backend(
        self, database_url: str, open_session: Callable[[Database], Session]
    ) -> None:
        session = open_session(Database(database_url, statement_timeout_seconds=0.1))
        ((pid,),) = await session.run("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(StoreUnavailable):
                    await session.run("SELECT 1")
                assert await session.run("SELECT 1") == [(1,)]
        finally:
            os.kill(pid, signal.SIGCONT)

        await eventually(lambda: connections(database_url) == 1)

    async def test_server_that_accepts_and_says_nothing(
        self, open_session: Callable[[Database], Session], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_module, "CONNECT_TIMEOUT_SECONDS", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            session = open_session(Database(f"postgresql://u@127.0.0.1:{port}/d"))
            async with asyncio.timeout(5):
                with pytest.raises(StoreUnavailable):
                    await session.run("SELECT 1")


class TestSecrets:
    """What reaches a log or a client holds neither a statement nor an address."""

    async def test_no_statement(self, database_url: str, session: Session) -> None:
        for statement in ("SELECT secret", "SELECT 'secret'::int", "SELECT 'secret', \0"):
            with pytest.raises((StoreUnavailable, DataRejected)) as raised:
                await session.run(statement)
            assert "secret" not in said_by(raised.value)

    async def test_no_address(self, open_session: Callable[[Database], Session]) -> None:
        session = open_session(Database("postgresql://user:secret@127.0.0.1:1/secret"))
        with structlog.testing.capture_logs() as logs, pytest.raises(StoreUnavailable) as raised:
            await session.run("SELECT 1")

        assert "secret" not in said_by(raised.value)
        assert logs
        assert "secret" not in repr(logs)


def said_by(error: BaseException) -> str:
    """All that a traceback of it would print, but for lines of code."""
    parts: list[str] = []
    shown: traceback.TracebackException | None
    shown = traceback.TracebackException.from_exception(error)
    while shown is not None:
        parts += shown.format_exception_only()
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return "".join(parts)


class TestUp:
    async def test_up_and_down(
        self,
        postgres: EmbeddedPostgres,
        database_url: str,
        database: Database,
        session: Session,
    ) -> None:
        assert database.is_up is None
        assert database.up_seconds == 0
        await session.run("SELECT 1")
        assert database.is_up
        with shut(postgres, database_url), structlog.testing.capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await session.run("SELECT 1")
                assert database.is_up is False
                assert database.up_seconds == 0

        assert [line["action"] for line in logs] == ["postgres_down"]
        before = database.up_seconds
        await session.run("SELECT 1")
        assert database.is_up
        assert before == 0 < database.up_seconds

    async def test_time_begins_again_after_an_outage(
        self, postgres: EmbeddedPostgres, database_url: str, database: Database, session: Session
    ) -> None:
        await session.run("SELECT 1")
        await eventually(lambda: database.up_seconds > 0.1)
        with shut(postgres, database_url), pytest.raises(StoreUnavailable):
            await session.run("SELECT 1")
        before = asyncio.get_running_loop().time()
        await session.run("SELECT 1")

        assert database.up_seconds <= asyncio.get_running_loop().time() - before

    @pytest.mark.parametrize(
        "failing",
        ["SELECT nothing", "SELECT 'x'::int", "SET statement_timeout = 20; SELECT pg_sleep(9)"],
    )
    async def test_error_that_the_server_sent_is_no_outage(
        self, database: Database, session: Session, failing: str
    ) -> None:
        await session.run("SELECT 1")
        up_seconds = database.up_seconds
        with pytest.raises((StoreUnavailable, DataRejected)):
            await session.run(failing)

        assert database.up_seconds > up_seconds > 0

    async def test_one_statement_that_fails_while_others_are_answered_is_no_outage(
        self, database_url: str, open_session: Callable[[Database], Session]
    ) -> None:
        database = Database(database_url, statement_timeout_seconds=0.1)
        slow, quick = open_session(database), open_session(database)
        await slow.run("SELECT 1")
        await quick.run("SELECT 1")
        up_seconds = database.up_seconds
        failing = asyncio.create_task(slow.run("SELECT pg_sleep(9)"))
        while not failing.done():
            await quick.run("SELECT 1")

        with pytest.raises(StoreUnavailable):
            await failing
        assert database.is_up
        assert database.up_seconds > up_seconds + 0.05

    async def test_statement_that_fails_alone_is_an_outage(
        self, database_url: str, open_session: Callable[[Database], Session]
    ) -> None:
        database = Database(database_url, statement_timeout_seconds=0.05)
        session = open_session(database)
        await session.run("SELECT 1")
        with pytest.raises(StoreUnavailable):
            await session.run("SELECT pg_sleep(9)")

        assert database.is_up is False

    async def test_server_that_takes_no_writes_is_away(
        self, database: Database, session: Session, open_session: Callable[[Database], Session]
    ) -> None:
        """No worker can renew its lease, although all can read."""
        reader = open_session(database)
        await reader.run("SELECT 1")
        await session.run("SET default_transaction_read_only = on")
        writing = asyncio.create_task(session.run("SELECT pg_sleep(0.05); DELETE FROM worker"))
        with structlog.testing.capture_logs() as logs:
            while not writing.done():
                await reader.run("SELECT 1")

        with pytest.raises(StoreUnavailable) as raised:
            await writing
        assert type(raised.value) is StoreUnavailable
        assert logs[0]["action"] == "postgres_down"


async def test_failures_leave_no_connection_behind(database_url: str) -> None:
    database = Database(database_url, statement_timeout_seconds=0.05)
    session = database.session("leaky")
    statements = [
        "SELECT nothing",
        "SELECT pg_sleep(1)",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT %(x)s",
    ]
    for statement in statements:
        with pytest.raises((StoreUnavailable, DataRejected)):
            await session.run(statement, {"x": "\0"})
        await session.run("SELECT 1")
    await session.close()
    del session
    gc.collect()

    await eventually(lambda: connections(database_url) == 0)


async def test_options_of_the_url_are_kept(database_url: str) -> None:
    session = Database(database_url + "&options=-c%20search_path%3Dmine").session("test")
    try:
        assert await session.run("SHOW search_path") == [("mine",)]
        assert await session.run("SHOW jit") == [("off",)]
    finally:
        await session.close()


async def test_refused_connection_is_logged_with_the_servers_sentence(database_url: str) -> None:
    session = Database(database_named(database_url, "nowhere")).session("test")

    with structlog.testing.capture_logs() as events, pytest.raises(StoreUnavailable):
        await session.run("SELECT 1")

    assert events[-1]["reason"] == 'database "nowhere" does not exist'


async def test_patient_database_has_a_limit_of_its_own(database_url: str) -> None:
    session = Database(database_url).patient(3600).session("test")
    try:
        assert await session.run("SHOW statement_timeout") == [("2h",)]
    finally:
        await session.close()


async def test_prepared_statement_that_the_server_forgot_is_prepared_again(
    session: Session,
) -> None:
    echo = Prepared.of("echo", "SELECT %(value)s::int, %(other)s::text, %(value)s::int + 1")
    parameters = {"value": 1, "other": "a'b"}
    assert await session.run(echo, parameters) == [(1, "a'b", 2)]

    await session.run("DEALLOCATE ALL")

    assert await session.run(echo, parameters) == [(1, "a'b", 2)]
