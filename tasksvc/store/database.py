"""The seam to aiopg: a connection that heals itself, one statement at a time, and our errors.

aiopg's pool is not used: it loses wake-ups, and one hanging connect stops everybody. Each kind of
work has a session of its own instead, so that no kind can starve another.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import aiopg
import psycopg2
import psycopg2.errors
import structlog
from psycopg2 import errorcodes
from psycopg2.extensions import parse_dsn

from tasksvc.domain.errors import (
    AlreadyThere,
    ContentRefused,
    StatementRefused,
    StoreUnavailable,
    Unreadable,
)
from tasksvc.store.connection import Connection
from tasksvc.store.queries import Prepared

log = structlog.get_logger(__name__)

Row = tuple[Any, ...]

CONNECT_TIMEOUT_SECONDS = 3.0

_TRIES = 3
"""A statement is run again after a deadlock or on a connection that turns out to be dead. Each is
written so that running it again is right."""

_RUN_AGAIN = frozenset({errorcodes.DEADLOCK_DETECTED, errorcodes.SERIALIZATION_FAILURE})

_SHORT_SECONDS = 0.1
"""After a deadlock: for the other to go on, or both would meet again."""

# Read-only, or out of disk, memory or connections: it answers, and nobody can write.
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


class _ServerCanceled(Exception):
    """The server ended the statement: its own time limit, or an operator."""


class Database:
    """Where PostgreSQL is, and how to talk to it."""

    def __init__(self, url: str, *, statement_timeout_seconds: float = 5.0) -> None:
        self._url = url
        self.statement_timeout_seconds = statement_timeout_seconds
        self._up_since = 0.0
        self._answered_at = float("-inf")
        self.is_up: bool | None = None
        """Whether PostgreSQL was there when it was last asked; None before the first time."""

    def patient(self, statement_timeout_seconds: float) -> Database:
        """The same PostgreSQL with another time limit."""
        return Database(self._url, statement_timeout_seconds=statement_timeout_seconds)

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
        """A statement that began at `since` failed: alone, or because PostgreSQL is away.

        What is not the server's own sentence may hold an address, and is not said.
        """
        code = getattr(error, "pgcode", None)
        said = {
            "session": session,
            "error": type(error).__name__,
            "code": code,
            "reason": _sentence(error),
        }
        if since <= self._answered_at and not _refuses_all(code):
            log.warning("Statement failed", action="statement_failed", **said)
        elif self.is_up is not False:  # said once for each outage
            self.is_up = False
            log.warning("PostgreSQL does not answer", action="postgres_down", **said)

    def session(self, name: str) -> Session:
        """A connection of its own, made when it is first needed."""
        return Session(self, name)

    async def connect(self, name: str) -> Connection:
        """Raises psycopg2.Error, OSError or TimeoutError."""
        return await Connection(
            self._url,
            CONNECT_TIMEOUT_SECONDS,
            enable_hstore=False,  # it costs a query for each connect
            enable_uuid=False,  # ids are text for us
            application_name=f"tasksvc-{os.getpid()}-{name}",
            options=self._options(),
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
        )

    def connect_blocking(self) -> psycopg2.extensions.connection:
        """A connection for a thread: it has none of a session's settings.

        Raises psycopg2.Error.
        """
        return psycopg2.connect(
            self._url,
            connect_timeout=round(CONNECT_TIMEOUT_SECONDS),
            application_name=f"tasksvc-{os.getpid()}-guard",
        )

    def _options(self) -> str:
        timeout = round(self.statement_timeout_seconds * 1000)
        settings = {
            "timezone": "UTC",
            # The client gives up first; these are the backstop for what it leaves behind.
            "statement_timeout": round(self.longest_statement_seconds * 1000),
            "lock_timeout": timeout,
            "idle_in_transaction_session_timeout": timeout * 2,
            "client_connection_check_interval": 2000,
            # Every statement finds its rows by an index. A young table without statistics must
            # not talk the planner into reading all of it.
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "jit": "off",
            # What is looked up by a nullable key would be read whole, and kept, for each statement.
            "enable_material": "off",
            "plan_cache_mode": "force_generic_plan",
        }
        given = parse_dsn(self._url).get("options", "")
        ours = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return f"{given} {ours}".strip()


class Session:
    """One connection and a line before it. It reconnects by itself."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._cursor: aiopg.Cursor | None = None
        self._prepared: set[Prepared] = set()
        self.runs_again = 0
        """How many statements were run again on another connection. What the first try does may
        still come: the server notices late that nobody waits for its answer."""

    async def run(
        self, query: str | Prepared, parameters: Mapping[str, Any] | None = None
    ) -> list[Row]:
        """The rows of one statement; an empty list for one that has none.

        Raises:
            StoreUnavailable: PostgreSQL is away or too slow. Whether the statement took effect is
                unknown.
            StatementRefused: one of these; the statement is wrong, and nothing took effect.
            ContentRefused: a value does not fit the database; nothing took effect. AlreadyThere,
                when it is a key that some row has.
            Unreadable: one of the rows is damaged, or is nothing that Python can hold. Whether the
                statement took effect is unknown.
        """
        async with self._turn:
            since = time.monotonic()
            try:
                rows = await self._run_healing(query, parameters)
            except (ContentRefused, Unreadable):
                raise
            except (psycopg2.Error, OSError, RuntimeError, _ServerCanceled) as error:
                raise self._failed(error, since) from None  # its text may hold SQL and addresses
            except BaseException:
                self._drop()
                raise
            self._database.mark_up()
            return rows

    async def close(self) -> None:
        async with self._turn:
            self._drop()

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
        timeout = self._database.statement_timeout_seconds
        try:
            if isinstance(query, Prepared):
                if query not in self._prepared:
                    await cursor.execute(query.prepare, timeout=timeout)
                    self._prepared.add(query)
                query = query.execute
            await cursor.execute(query, parameters, timeout=timeout)
        except asyncio.CancelledError as error:
            # aiopg turns a statement that the *server* canceled into a CancelledError. Taken for
            # a real one it would end a consumer in silence.
            if _is_canceled_by_us():
                raise
            raise _ServerCanceled from error
        except psycopg2.errors.UniqueViolation:
            raise AlreadyThere from None
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError):
            raise ContentRefused from None  # its text holds the value
        except psycopg2.InternalError as error:
            if error.pgcode in _DAMAGED:
                raise Unreadable from None
            raise
        try:
            return await cursor.fetchall() if cursor.description else []
        except psycopg2.Error:
            raise
        except Exception:
            raise Unreadable from None  # its text holds the value

    def _failed(self, error: BaseException, since: float) -> StoreUnavailable:
        code = getattr(error, "pgcode", None)
        is_answer = isinstance(error, _ServerCanceled) or bool(code and not self._is_broken())
        self._drop()
        if is_answer and not _refuses_all(code):
            self._database.mark_up()
        self._database.mark_failed(error, self._name, since)
        if is_answer and not _refuses_all(code) and isinstance(error, _REFUSES_STATEMENT):
            return StatementRefused(_sentence(error))
        return StoreUnavailable()

    async def _open(self) -> aiopg.Cursor:
        if self._cursor is None or self._is_broken():
            self._drop()
            self._connection = await self._database.connect(self._name)
            self._cursor = await self._connection.cursor()
        return self._cursor

    def _is_broken(self) -> bool:
        return self._connection is None or bool(self._connection.closed)

    def _drop(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        self._prepared.clear()
        if connection is not None:
            connection.close()


def _is_canceled_by_us() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _refuses_all(code: str | None) -> bool:
    return code is not None and code.startswith(_REFUSES_ALL)


def _sentence(error: BaseException) -> str | None:
    """What the server said, in its first line; None when it was not the server."""
    sentence: str | None = getattr(getattr(error, "diag", None), "message_primary", None)
    # What a server says to a connection that it refuses, psycopg2 has as text alone, behind the
    # address: 'connection to server at "…" failed: FATAL:  …'.
    _, is_refusal, refusal = str(error).partition("FATAL:")
    if sentence is None and is_refusal and isinstance(error, psycopg2.OperationalError):
        return refusal.strip().splitlines()[0]
    return sentence
