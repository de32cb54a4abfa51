"""Brings the schema up to date, once, safely from many starters.

Forward only: `migrations/NNNN_subject.sql`, each in one transaction with its row in
`schema_migrations`. `migrations/schema.sql` shows what they come to (`make schema`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

import structlog

from tasksvc.domain.errors import (
    DataRejected,
    MigrationFailed,
    StatementRefused,
    StoreRefuses,
)
from tasksvc.store.checks import check_database, check_pooler, check_rights
from tasksvc.store.database import Database, Row, Session

log = structlog.get_logger(__name__)

MIGRATION_SECONDS = 3600.0
"""The time limit of one migration: it may have a large table to go through."""

_HAS_TABLE = "SELECT to_regclass('schema_migrations') IS NOT NULL"

# Of two starters that make the table at the same moment one would fail, so one waits. The number
# is any fixed one: the ASCII of "task", in decimal, as PostgreSQL before 16 knows no other.
_TABLE = """
SELECT pg_advisory_xact_lock(1952543595);
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""

_DONE = "SELECT name FROM schema_migrations"

# It comes first: a second starter waits here for the first one's commit, and then is refused.
_RECORD = "INSERT INTO schema_migrations (name) VALUES ('{name}');\n"


BASELINE = "0001_baseline.sql"

LAST_BEFORE_BASELINE = "0021_worker_epoch.sql"
"""The last migration of version 0.1. A database that has it has the baseline's schema."""

_NAME = re.compile(r"\d{4}_\w+\.sql")

_TABLES = re.compile(r"^(CREATE|DROP) (?:UNLOGGED )?TABLE (\w+)", re.MULTILINE)


async def migrate(database: Database) -> list[str]:
    """The names of the migrations that were applied now.

    Raises MigrationFailed for one that PostgreSQL does not take, StoreRefuses for a database that
    can't be used as it is, and StoreUnavailable.
    """
    patient = database.patient(MIGRATION_SECONDS)
    session = patient.session("migrate")
    applied: list[str] = []
    try:
        await check_pooler(patient)
        await check_database(patient, session)
        if not (await session.run(_HAS_TABLE))[0][0]:
            await _create_table(session)
        migrations = _migrations()
        done = await _find_done(session)
        if (BASELINE,) not in done and BASELINE in dict(migrations):
            done += await _recognize(session, done)
        for name, text in migrations:
            if (name,) not in done and await _apply(session, name, text):
                applied.append(name)
        await check_rights(session, _tables(text for _, text in migrations))
        return applied
    finally:
        if applied:
            log.info(
                f"Migrations applied: {len(applied)}, the last one is {applied[-1]}",
                action="migrated",
            )
        await session.close()


async def _find_done(session: Session) -> list[Row]:
    try:
        return await session.run(_DONE)
    except StatementRefused as error:
        raise StoreRefuses(error.reason) from None


async def _recognize(session: Session, done: list[Row]) -> list[Row]:
    """Records the baseline in a database of version 0.1, and returns its row.

    Raises MigrationFailed for one that stands before the last migration of that version.
    """
    if (LAST_BEFORE_BASELINE,) in done:
        await _apply(session, BASELINE, "")
        return [(BASELINE,)]
    if done:
        last = max(name for (name,) in done)
        raise MigrationFailed(
            BASELINE,
            f"the database stands at {last}; bring it to {LAST_BEFORE_BASELINE} with the version"
            " that made it, and try again",
        )
    return []


async def _create_table(session: Session) -> None:
    try:
        await session.run(_TABLE)
    except StatementRefused as error:
        raise MigrationFailed("schema_migrations", error.reason) from None


async def _apply(session: Session, name: str, text: str) -> bool:
    """False when it was applied by another starter, or by a first try whose answer was lost."""
    try:
        # Several statements in one string are one transaction.
        await session.run(_RECORD.format(name=name) + text)
    except (DataRejected, StatementRefused) as error:
        if (name,) in await session.run(_DONE):
            return False
        raise MigrationFailed(name, getattr(error, "reason", None)) from None
    return True


def _migrations() -> list[tuple[str, str]]:
    files = (resources.files("tasksvc") / "migrations").iterdir()
    return sorted(
        (file.name, file.read_text("utf-8")) for file in files if _NAME.fullmatch(file.name)
    )


def _tables(migrations: Iterable[str]) -> list[str]:
    """Those that are there after all of the migrations."""
    there: dict[str, bool] = {}
    for text in migrations:
        there |= {name: verb == "CREATE" for verb, name in _TABLES.findall(text)}
    return [name for name, is_there in there.items() if is_there]
