"""SAQ over Redis."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from saq import Queue, Worker

from ops.bench.peers import api, tally

CONCURRENCY = 10

queue = Queue.from_url(os.environ["BENCH_REDIS_URL"])


async def create(content: str) -> str:
    job = await queue.enqueue("work", content=content, retries=3, ttl=-1)
    assert job
    return str(job.id)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await queue.connect()
    yield
    await queue.disconnect()


app = api.create_app(create, lifespan)


async def enqueue(count: int) -> None:
    async with lifespan(app):
        await api.many(create, count)


async def work() -> None:
    worked = tally.own()

    async def run_task(ctx: dict[str, Any], *, content: str) -> None:
        worked.add()

    async with lifespan(app):
        await Worker(queue, [("work", run_task)], concurrency=CONCURRENCY).start()
