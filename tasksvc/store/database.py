"""The seam to aiopg: a connection that heals itself, one statement at a time, and our errors.

aiopg's pool is not used: it loses wake-ups, and one hanging connect stops everybody. Each kind of
work has a session of its own instead, so that no kind can starve another.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiopg
import psycopg2
import psycopg2.errors
import structlog
from psycopg2 import errorcodes
from psycopg2.extensions import parse_dsn

from tasksvc.domain.errors import (
    DataRejected,
    DuplicateKey,
    StatementRefused,
    StoreRefuses,
    StoreUnavailable,
    Unreadable,
)
from tasksvc.store.addresses import Addresses
from tasksvc.store.connection import Connection, ServerCanceled
from tasksvc.store.queries import Prepared
from tasksvc.store.reasons import NoConnection, Unfit, is_lasting, reason_of
from tasksvc.store.session_settings import ONLY_PID, statement

log = structlog.get_logger(__name__)

Row = tuple[Any, ...]

CONNECT_TIMEOUT_SECONDS = 3.0
"""Unless the URL has a `connect_timeout`."""

_LONGEST_CONNECT_SECONDS = 20.0
"""A loop that stands still for longer counts as dead."""

_LONGEST_NAME = 40
"""Of the `application_name` in the URL. PostgreSQL keeps 63 bytes, and the session comes behind."""

_NEEDS_NO_STANDBY = frozenset({"lease"})
"""A lease need not survive a failover, and a worker must not lose it while commits wait for a
standby that is away."""

_MOST_LEFT_BEHIND = 2
"""Backends that a session has given up and PostgreSQL does not end. With so many there is no other
connection, or they would use up max_connections."""

_LONGEST_END_SECONDS = 1.0
"""How long to wait until such a backend is gone."""

_END_LEFT_BEHIND = """
SELECT pid, pg_terminate_backend(pid, %(milliseconds)s) FROM pg_stat_activity
WHERE pid = ANY(%(pids)s::int[]) AND application_name = %(name)s
"""

_FEW_ROWS = 10
"""However large, they may be kept for a while."""

_TRIES = 3
"""A statement is run again after a deadlock or on a connection that turns out to be dead. Each is
written so that running it again is right."""

_RUN_AGAIN = frozenset({errorcodes.DEADLOCK_DETECTED, errorcodes.SERIALIZATION_FAILURE})

_SHORT_SECONDS = 0.1
"""After a deadlock: for the other to go on, or both would meet again."""

# Read-only, or out of disk, memory or connections: it answers, and no client can write.
_REFUSES_ALL = ("25", "53")

# About the statement itself: it would fail again.
_REFUSES_STATEMENT = (
    psycopg2.ProgrammingError,
    psycopg2.NotSupportedError,
    psycopg2.InternalError,
)

_FORGOTTEN = frozenset({errorcodes.INVALID_SQL_STATEMENT_NAME, errorcodes.FEATURE_NOT_SUPPORTED})
"""A prepared statement is gone, or what it returns was changed by a migration."""

_DAMAGED = frozenset({errorcodes.DATA_CORRUPTED, errorcodes.INDEX_CORRUPTED})

# What aiopg, psycopg2 and uvloop raise when a connection breaks under them.
_BROKEN = (psycopg2.OperationalError, psycopg2.InterfaceError, OSError, RuntimeError)


class Database:
    """Where PostgreSQL is, and how to talk to it."""

    def __init__(
        self, url: str, *, statement_timeout_seconds: float = 5.0, schema: str | None = None
    ) -> None:
        """`schema` is where the tables are; None: where the role's search path says."""
        self._url = url
        self._dsn: dict[str, str] = parse_dsn(url)
        self._addresses = Addresses(self._dsn)
        self.schema = schema
        self.statement_timeout_seconds = statement_timeout_seconds
        self._up_since = 0.0
        self._answered_at = float("-inf")
        self._is_silent = False
        self._is_tried = False
        self.is_up: bool | None = None
        """Whether PostgreSQL was there when it was last asked; None before the first time."""

    def patient(self, statement_timeout_seconds: float) -> Database:
        """The same PostgreSQL with another time limit."""
        return Database(
            self._url,
            statement_timeout_seconds=statement_timeout_seconds,
            schema=self.schema,
        )

    @property
    def longest_statement_seconds(self) -> float:
        """The server's own limit: what the client has given up may go on there for so long."""
        return 2 * self.statement_timeout_seconds

    @property
    def up_seconds(self) -> float:
        """How long PostgreSQL has been there without a break; 0 while it is away."""
        return time.monotonic() - self._up_since if self.is_up else 0.0

    def mark_up(self) -> None:
        self._answered_at = time.monotonic()
        if not self.is_up:
            self.is_up = True
            self._up_since = self._answered_at
            log.info("PostgreSQL answers", action="postgres_up")

    def mark_failed(self, error: BaseException, session: str, since: float) -> None:
        """A statement that began at `since` failed: alone, or because PostgreSQL is away."""
        code = getattr(error, "pgcode", None)
        said = {
            "session": session,
            "error": type(error).__name__,
            "code": code,
            "reason": reason_of(error),
        }
        if since <= self._answered_at and not _refuses_all(code):
            log.warning("Statement failed", action="statement_failed", **said)
        elif self.is_up is not False:  # said once for each outage
            self.is_up = False
            log.warning("PostgreSQL does not answer", action="postgres_down", **said)

    def session(self, name: str, *, is_bare: bool = False) -> Session:
        """A connection of its own, made when it is first needed; a bare one has no settings."""
        return Session(self, name, is_bare=is_bare)

    async def connect(self, name: str, *, is_bare: bool = False) -> Connection:
        """A connection that is ready for a session's statements.

        While PostgreSQL lets connections hang, one at a time tries: what it does not see end, it
        may keep for a minute.

        Raises psycopg2.Error, OSError, TimeoutError, ServerCanceled or Unfit.
        """
        if self._is_silent and self._is_tried:
            raise NoConnection
        self._is_tried = True
        try:
            deadline = time.monotonic() + self._connect_seconds
            connection = await self._connect(name, is_bare, deadline)
        except TimeoutError:
            self._is_silent = True
            raise NoConnection from None
        finally:
            self._is_tried = False
        self._is_silent = False
        return connection

    async def _connect(self, name: str, is_bare: bool, deadline: float) -> Connection:
        addresses = await self._addresses.find(deadline - time.monotonic())
        connection = await self._connect_to_any(name, addresses, deadline)
        try:
            _check_encoding(connection)
            text = ONLY_PID
            if not is_bare:
                text = self._settings(name, connection.raw.server_version)
            cursor = await connection.cursor()
            await connection.run(cursor, text, None, deadline - time.monotonic())
            connection.server_pid = (await cursor.fetchall())[0][0]
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect_to_any(
        self, name: str, addresses: Sequence[str], deadline: float
    ) -> Connection:
        """To the first address that takes it. Each has its share of the time."""
        for left in range(len(addresses), 1, -1):
            try:
                return await self._connect_to(
                    name, addresses[-left], (deadline - time.monotonic()) / left
                )
            except (psycopg2.OperationalError, OSError) as error:
                log.debug("Trying another address", action="other_address", reason=reason_of(error))
        last = addresses[-1] if addresses else None
        return await self._connect_to(name, last, deadline - time.monotonic())

    async def _connect_to(self, name: str, address: str | None, seconds: float) -> Connection:
        ours = {
            "client_encoding": "UTF8",
            "application_name": self.application_name(name),
            "hostaddr": address,
        }
        unless_given = {
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }
        return await Connection(
            self._url,
            max(0.001, seconds),
            enable_hstore=False,  # it costs a query for each connect
            enable_uuid=False,  # ids are text for us
            **{name: value for name, value in unless_given.items() if name not in self._dsn},
            **{name: value for name, value in ours.items() if value is not None},
        )

    def connect_blocking(self) -> psycopg2.extensions.connection:
        """A connection for a thread that renews the lease, with the settings of its session.

        Raises psycopg2.Error.
        """
        connection = psycopg2.connect(
            self._url,
            connect_timeout=max(1, round(self._connect_seconds)),
            client_encoding="UTF8",
            application_name=self.application_name("guard"),
            tcp_user_timeout=round(1000 * self.longest_statement_seconds),
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(self._settings("lease", connection.server_version))
        except BaseException:
            connection.close()
            raise
        return connection

    def _settings(self, session: str, version: int) -> str:
        return statement(
            self.statement_timeout_seconds,
            version=version,
            schema=self.schema,
            waits_for_standby=session not in _NEEDS_NO_STANDBY,
        )

    def application_name(self, session: str) -> str:
        """What PostgreSQL shows of a session's connection."""
        given = self._dsn.get("application_name", "tasksvc")
        return f"{given[:_LONGEST_NAME]}-{os.getpid()}-{session}"

    @property
    def _connect_seconds(self) -> float:
        return min(
            float(self._dsn.get("connect_timeout") or 0) or CONNECT_TIMEOUT_SECONDS,
            _LONGEST_CONNECT_SECONDS,
        )


class Session:
    """One connection and a line before it. It reconnects by itself."""

    def __init__(self, database: Database, name: str, *, is_bare: bool = False) -> None:
        self._database = database
        self._name = name
        self._is_bare = is_bare
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._cursor: aiopg.Cursor | None = None
        self._prepared: set[Prepared] = set()
        self._is_asking = False
        self._left_behind: set[int] = set()
        self.runs_again = 0
        """How many statements were run again on another connection. What the first try does may
        still come: the server notices late that the client is gone."""

    async def run(
        self, query: str | Prepared, parameters: Mapping[str, Any] | None = None
    ) -> list[Row]:
        """The rows of one statement; an empty list for one that has none.

        Raises:
            StoreUnavailable: PostgreSQL is away or too slow. Whether the statement took effect is
                unknown.
            StoreRefuses: one of these; PostgreSQL takes no connection until an operator changes
                something.
            StatementRefused: one of these; the statement is wrong, and nothing took effect.
            DataRejected: a value does not fit the database; nothing took effect. DuplicateKey,
                when it is a key that some row has.
            Unreadable: one of the rows is damaged, or is nothing that Python can hold. Whether the
                statement took effect is unknown.
        """
        async with self._turn:
            since = time.monotonic()
            try:
                rows = await self._run_healing(query, parameters)
            except (DataRejected, Unreadable):
                raise
            except (psycopg2.Error, OSError, RuntimeError, ServerCanceled, Unfit) as error:
                raise self._failed(error, since) from None  # its text may hold SQL and addresses
            except BaseException:
                self._drop()
                raise
            self._database.mark_up()
            return rows

    @property
    def is_pooled(self) -> bool:
        """Whether something stands between its connection and PostgreSQL that speaks for it."""
        connection = self._connection
        return connection is not None and (
            connection.raw.get_backend_pid() != connection.server_pid
        )

    async def close(self) -> None:
        """Closes the connection, and ends what earlier ones left behind if PostgreSQL is there."""
        async with self._turn:
            self._drop()
            if self._left_behind and self._database.is_up:
                try:
                    await self._open()
                except (psycopg2.Error, OSError, RuntimeError, ServerCanceled, Unfit):
                    self._database.is_up = False  # the other sessions need not try
                self._drop()
                self._left_behind.clear()

    async def _run_healing(
        self, query: str | Prepared, parameters: Mapping[str, Any] | None
    ) -> list[Row]:
        for _ in range(_TRIES - 1):
            was_connected = self._connection is not None
            try:
                return await self._run(query, parameters)
            except psycopg2.Error as error:
                if error.pgcode in _FORGOTTEN:
                    self._drop()
                elif error.pgcode in _RUN_AGAIN:
                    await asyncio.sleep(random.uniform(0.1, 1) * _SHORT_SECONDS)
                elif was_connected and self._is_broken():
                    self.runs_again += 1
                else:
                    raise
            except TimeoutError:
                raise
            except _BROKEN:
                if not was_connected:
                    raise
                self._drop()
                self.runs_again += 1
        return await self._run(query, parameters)

    async def _run(self, query: str | Prepared, parameters: Mapping[str, Any] | None) -> list[Row]:
        cursor = await self._open()
        deadline = time.monotonic() + self._database.statement_timeout_seconds
        try:
            if isinstance(query, Prepared):
                if query not in self._prepared:
                    await self._ask(cursor, query.prepare, None, deadline)
                    self._prepared.add(query)
                query = query.execute
            await self._ask(cursor, query, parameters, deadline)
        except psycopg2.errors.DuplicatePreparedStatement:
            raise Unfit(
                "a pooler gives this session what others have prepared: set it to"
                " pool_mode = session, with its server_reset_query"
            ) from None
        except psycopg2.errors.UniqueViolation:
            raise DuplicateKey from None
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError):
            raise DataRejected from None  # its text holds the value
        except psycopg2.InternalError as error:
            if error.pgcode in _DAMAGED:
                raise Unreadable from None
            raise
        try:
            rows = await cursor.fetchall() if cursor.description else []
        except psycopg2.Error:
            raise
        except Exception:
            raise Unreadable from None  # its text holds the value
        if len(rows) > _FEW_ROWS:
            # It would keep what it has fetched, up to 30 MB of a page, until the next statement.
            self._cursor = None
            cursor.close()
        return rows

    async def _ask(
        self,
        cursor: aiopg.Cursor,
        text: str,
        parameters: Mapping[str, Any] | None,
        deadline: float,
    ) -> None:
        assert self._connection is not None
        self._is_asking = True
        try:
            await self._connection.run(cursor, text, parameters, deadline - time.monotonic())
        except (psycopg2.Error, ServerCanceled, ValueError) as error:
            # Without a code the server has not answered.
            self._is_asking = isinstance(error, psycopg2.Error) and error.pgcode is None
            raise
        self._is_asking = False

    def _failed(self, error: BaseException, since: float) -> StoreUnavailable:
        code = getattr(error, "pgcode", None)
        is_answer = isinstance(error, ServerCanceled) or bool(code and not self._is_broken())
        reason = reason_of(error)
        self._drop()
        if is_answer and not _refuses_all(code):
            self._database.mark_up()
        self._database.mark_failed(error, self._name, since)
        if is_answer and not _refuses_all(code) and isinstance(error, _REFUSES_STATEMENT):
            return StatementRefused(reason)
        if isinstance(error, Unfit) or is_lasting(error):
            return StoreRefuses(reason)
        return StoreUnavailable(reason)

    async def _open(self) -> aiopg.Cursor:
        if self._connection is None or self._is_broken():
            self._drop()
            self._connection = await self._database.connect(self._name, is_bare=self._is_bare)
            self._cursor = await self._connection.cursor()
            if self._left_behind:
                await self._end_left_behind(self._cursor)
        if self._cursor is None:
            self._cursor = await self._connection.cursor()
        return self._cursor

    async def _end_left_behind(self, cursor: aiopg.Cursor) -> None:
        """What this session gave up may wait on in the server, for a lock or a standby, and what it
        does may still come. Here it ends."""
        seconds = self._database.statement_timeout_seconds
        parameters = {
            "pids": list(self._left_behind),
            "name": self._database.application_name(self._name),
            "milliseconds": max(1, round(1000 * min(_LONGEST_END_SECONDS, seconds / 2))),
        }
        deadline = time.monotonic() + CONNECT_TIMEOUT_SECONDS
        await self._ask(cursor, _END_LEFT_BEHIND, parameters, deadline)
        self._left_behind = {pid for pid, is_over in await cursor.fetchall() if not is_over}
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            raise psycopg2.OperationalError("earlier statements of this session do not end")

    def _is_broken(self) -> bool:
        return self._connection is None or bool(self._connection.closed)

    def _drop(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        self._prepared.clear()
        if connection is not None:
            if self._is_asking:
                self._left_behind.add(connection.server_pid)
                self._is_asking = False
            connection.close()


def _refuses_all(code: str | None) -> bool:
    return code is not None and code.startswith(_REFUSES_ALL)


def _check_encoding(connection: Connection) -> None:
    """One character that does not fit would stop every batch that it is in. Raises Unfit."""
    encoding = connection.raw.get_parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise Unfit(f"the database's encoding is {encoding}, and must be UTF8")
