"""arq over Redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq import ArqRedis, Worker, create_pool, func
from arq.connections import RedisSettings
from fastapi import FastAPI

from ops.bench.peers import api, tally

MAX_JOBS = 100
POLL_SECONDS = 0.01

SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
_pool: ArqRedis


async def create(content: str) -> str:
    job = await _pool.enqueue_job("work", content)
    assert job
    return job.job_id


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global _pool
    _pool = await create_pool(SETTINGS)
    yield
    await _pool.aclose()


app = api.create_app(create, lifespan)


async def enqueue(count: int) -> None:
    async with lifespan(app):
        await api.many(create, count)


def work() -> None:
    worked = tally.own()

    async def run_task(ctx: dict[str, Any], content: str) -> None:
        worked.add()

    asyncio.set_event_loop(uvloop.new_event_loop())
    Worker(
        functions=[func(run_task, name="work", keep_result=0)],
        redis_settings=SETTINGS,
        max_jobs=MAX_JOBS,
        poll_delay=POLL_SECONDS,
        log_results=False,
    ).run()
