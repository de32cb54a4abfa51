"""aiopg's connection, watched through a descriptor of our own.

libpq closes its socket when a connection breaks, and takes another one when it tries to connect
again without TLS. The event loop, in which aiopg had registered the first, then waits in vain, or
watches what has the same number now: a statement hangs, or libuv aborts the process. A copy of the
descriptor is closed by no other code.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from weakref import ReferenceType

import aiopg
import psycopg2
from psycopg2.extensions import PYDATETIMETZ, new_type, register_type

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def _moment(text: Any, cursor: Any) -> Any:
    """PostgreSQL's times go beyond Python's: those become the first or the last of Python's."""
    try:
        return PYDATETIMETZ(text, cursor)
    except (ValueError, OverflowError):
        return _FIRST if text is not None and text.endswith("BC") else _LAST


_MOMENTS = new_type(PYDATETIMETZ.values, "MOMENT", _moment)


class ServerCanceled(Exception):
    """The server ended the statement: its own time limit, or an operator."""


class Connection(aiopg.Connection):
    """`await Connection(dsn, timeout, **options)` connects."""

    server_pid = 0
    """The backend's process id, as PostgreSQL itself calls it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_connecting = True
        self._loop.remove_reader(self._conn.fileno())
        self._fileno = None
        try:
            self._watch()
        except OSError:
            self._conn.close()
            raise

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._connect().__await__()

    async def _connect(self) -> Connection:
        await super()._connect()
        self._is_connecting = False
        register_type(_MOMENTS, self.raw)
        return self

    async def run(
        self,
        cursor: aiopg.Cursor,
        text: str,
        parameters: Mapping[str, Any] | None,
        seconds: float,
    ) -> None:
        """Runs a statement within so many seconds.

        Raises ServerCanceled, TimeoutError, psycopg2.Error and OSError.
        """
        try:
            await cursor.execute(text, parameters, timeout=max(0.0, seconds))
        except asyncio.CancelledError as error:
            # aiopg turns a statement that the *server* canceled into a CancelledError. Taken for
            # a real one it would end a consumer in silence.
            current = asyncio.current_task()
            if current is not None and current.cancelling() > 0:
                raise
            raise ServerCanceled from error

    @staticmethod
    def _ready(weak_self: ReferenceType[Any]) -> None:
        aiopg.Connection._ready(weak_self)
        self = weak_self()
        if self is None:
            return
        if self._conn.closed:
            self._unwatch()
        elif self._is_connecting and self._has_moved():
            self._unwatch()
            self._watch()

    def _close(self) -> None:
        self._unwatch()
        super()._close()

    def _watch(self) -> None:
        self._fileno = os.dup(self._conn.fileno())
        self._loop.add_reader(self._fileno, self._ready, self._weakref)
        if self._writing:
            self._loop.add_writer(self._fileno, self._ready, self._weakref)

    def _unwatch(self) -> None:
        fileno, self._fileno = self._fileno, None
        if fileno is not None:
            self._loop.remove_reader(fileno)
            self._loop.remove_writer(fileno)
            os.close(fileno)

    def _has_moved(self) -> bool:
        """Whether libpq has another socket now; its number may be the same."""
        with suppress(OSError, psycopg2.Error):
            if self._fileno is not None:
                return os.fstat(self._conn.fileno()).st_ino != os.fstat(self._fileno).st_ino
        return False
