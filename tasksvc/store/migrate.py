"""Brings the schema up to date, once, safely from many starters.

Forward only: `migrations/NNNN_subject.sql`, each in one transaction with its row in
`schema_migrations`.
"""

from __future__ import annotations

from importlib import resources

import structlog

from tasksvc.store.database import Database

log = structlog.get_logger(__name__)

_LOCK = 0x7461736B  # any fixed number: the ASCII of "task"

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


_RECORD = "INSERT INTO schema_migrations (name) VALUES ('{name}');\n"


async def migrate(database: Database) -> list[str]:
    """The names of the migrations that were applied now. Raises StoreUnavailable."""
    session = database.session("migrate")
    try:
        # A second starter waits here, up to the statement's time limit, and then finds all done.
        await session.run(f"SELECT pg_advisory_lock({_LOCK})")
        await session.run(_TABLE)
        done = {name for (name,) in await session.run("SELECT name FROM schema_migrations")}
        pending = [(name, text) for name, text in _migrations() if name not in done]
        for name, text in pending:
            # Several statements in one string are one transaction.
            await session.run(_RECORD.format(name=name) + text)
            log.info("Migration applied", action="migrated", migration=name)
        return [name for name, _ in pending]
    finally:
        await session.close()


def _migrations() -> list[tuple[str, str]]:
    files = (resources.files("tasksvc") / "migrations").iterdir()
    return sorted(
        (file.name, file.read_text("utf-8")) for file in files if file.name.endswith(".sql")
    )
