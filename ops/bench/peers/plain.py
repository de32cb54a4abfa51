"""The plain form of our own design: FastAPI, SQLAlchemy, asyncpg, one statement for each step.

A row, then an entry in a Redis stream; the worker marks the row before and after, then
acknowledges.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from fastapi import FastAPI
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from sqlalchemy import DateTime, Index, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ops.bench.peers import api, tally

CONNECTIONS = 20
PLACES = 20
"""Tasks that the worker runs at a time: one for each connection."""

STREAM = "tasks"
GROUP = "workers"


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    __table_args__ = (Index("task_status", "status"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    content: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


engine = create_async_engine(
    os.environ["BENCH_DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"),
    pool_size=CONNECTIONS,
    max_overflow=0,
)
sessions = async_sessionmaker(engine, expire_on_commit=False)
redis: Redis = Redis.from_url(os.environ["BENCH_REDIS_URL"])


async def prepare() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def create(content: str) -> str:
    task = Task(id=uuid4(), content=content, status="pending", created_at=datetime.now(UTC))
    async with sessions.begin() as session:
        session.add(task)
    await redis.xadd(STREAM, {"id": str(task.id)})
    return str(task.id)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await redis.aclose()
    await engine.dispose()


app = api.create_app(create, lifespan)


async def work() -> None:
    worked = tally.own()
    try:
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:  # it is there already
        if "BUSYGROUP" not in str(error):
            raise

    async def run_task(entry: bytes, task_id: UUID) -> None:
        await change(task_id, "pending", "processing")
        worked.add()
        await change(task_id, "processing", "completed")
        await redis.xack(STREAM, GROUP, entry)

    async def consume(name: str) -> None:
        while True:
            for _, entries in await redis.xreadgroup(
                GROUP, name, {STREAM: ">"}, count=1, block=5000
            ):
                for entry, fields in entries:
                    await run_task(entry, UUID(fields[b"id"].decode()))

    async with asyncio.TaskGroup() as consumers:
        for number in range(PLACES):
            consumers.create_task(consume(f"consumer-{number}"))


async def change(task_id: UUID, old: str, new: str) -> None:
    async with sessions.begin() as session:
        await session.execute(
            update(Task)
            .where(Task.id == task_id, Task.status == old)
            .values(status=new, updated_at=datetime.now(UTC))
        )
