"""What must be true of a database before the service starts on it."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from tasksvc.domain.errors import StoreRefuses
from tasksvc.store.arrays import text_array
from tasksvc.store.database import Database, Session
from tasksvc.store.session_settings import ONLY_PID

log = structlog.get_logger(__name__)

_TURNS = 3
"""How often two connections are compared: a busy pooler may give one the same backend twice."""

_DEFAULTS = """
SELECT to_regnamespace(quote_ident(%(schema)s)) IS NOT NULL,
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit')
"""

_RIGHTS = """
SELECT name, current_user, to_regclass(name) IS NOT NULL,
    ARRAY(SELECT word FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS word
          WHERE NOT has_table_privilege(to_regclass(name), word))
FROM unnest(%(names)s::text[]) AS name
"""


async def check_pooler(database: Database) -> None:
    """A session must keep its backend: what it prepares and sets there would be other clients' too.

    Raises StoreRefuses, and StoreUnavailable.
    """
    one = database.session("one", is_bare=True)
    other = database.session("other", is_bare=True)
    try:
        ((backend,),) = await one.run(ONLY_PID)
        for _ in range(_TURNS if one.is_pooled else 0):
            await other.run(f"BEGIN; {ONLY_PID}")
            ((now,),) = await one.run(ONLY_PID)
            await other.run("COMMIT")
            if now != backend:
                raise StoreRefuses(
                    "a pooler gives the service's sessions to other clients between statements:"
                    " set it to pool_mode = session"
                )
    finally:
        await one.close()
        await other.close()


async def check_database(database: Database, session: Session) -> None:
    """Raises StoreRefuses, and StoreUnavailable."""
    parameters = {"schema": database.schema}
    ((has_schema, synchronous_commit),) = await session.run(_DEFAULTS, parameters)
    if database.schema is not None and not has_schema:
        raise StoreRefuses(f"there is no schema {database.schema!r} in this database")
    if synchronous_commit == "off":
        log.warning(
            "synchronous_commit is off by default; tasksvc sets it to on for itself",
            action="synchronous_commit_off",
        )


async def check_rights(session: Session, tables: Iterable[str]) -> None:
    """Raises StoreRefuses, and StoreUnavailable."""
    for name, role, is_there, missing in await session.run(_RIGHTS, {"names": text_array(tables)}):
        if not is_there:
            raise StoreRefuses(f"the table {name} is missing, or its schema is closed to {role!r}")
        if missing:
            raise StoreRefuses(f"the role {role!r} may not {', '.join(missing)} in table {name}")
