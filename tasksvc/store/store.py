"""What every store is made of: named queries and sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasksvc.store import queries
from tasksvc.store.database import Database, Row
from tasksvc.store.queries import Prepared


class Store:
    """Each kind of work has a session of its own, so that none waits for another."""

    def __init__(self, database: Database, file: str, sessions: Sequence[str]) -> None:
        """`file` has the queries."""
        self._database = database
        self._queries = queries.load(file)
        self._prepared = {name: Prepared.of(name, text) for name, text in self._queries.items()}
        self._sessions = {name: database.session(name) for name in sessions}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def _run(self, session: str, query: str, **parameters: Any) -> list[Row]:
        return await self._sessions[session].run(self._prepared[query], parameters)
