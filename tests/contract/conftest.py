"""What the stores promise, asked of real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.store.database import Database
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.conftest import database_named
from tests.harness import create_database, query


@pytest.fixture(scope="session")
def contract_database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """One database for all, to be emptied: to make one for each test would take much longer."""
    create_database(postgres.url, "contract", template)
    yield database_named(postgres.url, "contract")
    query(postgres.url, "DROP DATABASE contract WITH (FORCE)")


@pytest.fixture
async def store(contract_database_url: str) -> AsyncIterator[TaskStore]:
    query(contract_database_url, "TRUNCATE task, attempt, worker, kind, idempotency_key")
    store = TaskStore(Database(contract_database_url))
    yield store
    await store.close()


@pytest.fixture
async def make_stream(
    redis_server: EmbeddedRedis, redis_prefix: str
) -> AsyncIterator[Callable[..., TaskStream]]:
    """Makes streams over one Redis, as several processes would."""
    streams: list[TaskStream] = []

    def make(*, max_entries: int = 10_000, block_seconds: float = 0.05, **more: Any) -> TaskStream:
        bounds = {"max_entries": max_entries, "block_seconds": block_seconds} | more
        stream = TaskStream(redis_server.url, prefix=redis_prefix, readers=4, **bounds)
        streams.append(stream)
        return stream

    yield make
    for stream in streams:
        await stream.close()


@pytest.fixture
async def stream(make_stream: Callable[..., TaskStream]) -> TaskStream:
    stream = make_stream()
    await stream.open()
    return stream
