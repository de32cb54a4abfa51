"""The lease, renewed without the event loop."""

from __future__ import annotations

from tasksvc.store import queries
from tasksvc.store.database import Database

_SETTINGS = "SET statement_timeout = 3000; SET lock_timeout = 3000"


class BlockingLease:
    """Renews a worker's lease from a thread, while the event loop is blocked.

    Each renewal has a connection of its own: it is rare, and nothing has to be kept for it.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._query = queries.load("tasks.sql")["renew_lease"]

    def renew(self, worker_id: str) -> None:
        """Blocks for a few seconds at most. A worker that was declared dead stays so.

        Raises psycopg2.Error.
        """
        connection = self._database.connect_blocking()
        try:
            with connection.cursor() as cursor:
                cursor.execute(_SETTINGS)
                cursor.execute(
                    self._query, {"worker_id": worker_id, "lease_seconds": self._lease_seconds}
                )
        finally:
            connection.close()
