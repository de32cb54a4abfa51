"""Procrastinate over PostgreSQL, with its asynchronous connector."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from procrastinate import App, PsycopgConnector

from ops.bench.peers import api, tally

CONCURRENCY = 20
CONNECTIONS = 20
AT_ONCE = 1000

procrastinate = App(
    connector=PsycopgConnector(
        conninfo=os.environ["BENCH_DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS
    )
)
_tally: tally.Tally | None = None


@procrastinate.task(name="work")
async def task(content: str) -> None:
    assert _tally
    _tally.add()


async def prepare() -> None:
    async with procrastinate.open_async():
        await procrastinate.schema_manager.apply_schema_async()


async def create(content: str) -> str:
    return str(await task.defer_async(content=content))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with procrastinate.open_async():
        yield


app = api.create_app(create, lifespan)


async def enqueue(count: int) -> None:
    async with procrastinate.open_async():
        for start in range(0, count, AT_ONCE):
            batch = range(start, min(count, start + AT_ONCE))
            await task.batch_defer_async(*({"content": api.CONTENT} for _ in batch))


async def work() -> None:
    global _tally
    _tally = tally.own()
    async with procrastinate.open_async():
        await procrastinate.run_worker_async(concurrency=CONCURRENCY, delete_jobs="successful")
