"""The same tests ask the fakes and the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tasksvc.embedded import EmbeddedPostgres
from tasksvc.store.database import Database
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.conftest import database_named
from tests.harness import create_database, query
from tests.memory import Bell, MemoryStore, MemoryStream


@pytest.fixture(scope="session")
def contract_database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """One database for all, to be emptied: to make one for each test would take much longer."""
    create_database(postgres.url, "contract", template)
    yield database_named(postgres.url, "contract")
    query(postgres.url, "DROP DATABASE contract WITH (FORCE)")


@pytest.fixture(params=["memory", "real"])
def real_database_url(request: pytest.FixtureRequest) -> str | None:
    """None for the fake."""
    if request.param == "memory":
        return None
    url: str = request.getfixturevalue("contract_database_url")
    query(url, "TRUNCATE task, attempt, worker, idempotency_key")
    return url


@pytest.fixture(params=["memory", "real"])
def real_redis_url(request: pytest.FixtureRequest) -> str | None:
    """None for the fake."""
    return None if request.param == "memory" else request.getfixturevalue("redis_server").url


@pytest.fixture
async def store(real_database_url: str | None) -> AsyncIterator[TaskStore]:
    if real_database_url is None:
        store: TaskStore = MemoryStore()
    else:
        store = TaskStore(Database(real_database_url))
    yield store
    await store.close()


@pytest.fixture
async def make_stream(
    real_redis_url: str | None, redis_prefix: str
) -> AsyncIterator[Callable[..., TaskStream]]:
    """Makes streams over one Redis, as several processes would."""
    streams: list[TaskStream] = []
    bell = Bell()

    def make(*, max_entries: int = 10_000, block_seconds: float = 0.05, **more: Any) -> TaskStream:
        bounds = {"max_entries": max_entries, "block_seconds": block_seconds} | more
        if real_redis_url is None:
            stream: TaskStream = MemoryStream(bell, **bounds)
        else:
            stream = TaskStream(real_redis_url, prefix=redis_prefix, readers=4, **bounds)
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
