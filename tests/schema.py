"""Writes the schema after all migrations: `python -m tests.schema` (`make schema`)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path

from tasksvc.embedded import EmbeddedPostgres
from tasksvc.embedded.binaries import find_postgres
from tasksvc.store.database import Database
from tasksvc.store.migrate import migrate
from tests.harness import ROOT

SCHEMA = ROOT / "migrations" / "schema.sql"

PG_DUMP = find_postgres().folder / "pg_dump"

_NOISE = re.compile(r"--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict")

_HEADER = "-- The schema after all migrations. `make schema` writes it, and a test compares it.\n\n"


def dump(url: str) -> str:
    """Returns the schema of a database, without owners, comments and settings."""
    words = [PG_DUMP, "--schema-only", "--no-owner", "--no-privileges", url]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if not _NOISE.match(line)]
    text = "\n".join(lines).replace("public.", "").strip()
    return _HEADER + re.sub(r"\n{3,}", "\n\n", text) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        with EmbeddedPostgres(folder / "state", announce=lambda text: None) as postgres:
            asyncio.run(migrate(Database(postgres.url)))
            SCHEMA.write_text(dump(postgres.url))


if __name__ == "__main__":
    main()
