"""The HTTP door of every FastAPI peer: the same request and the same answer as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

CONTENT = "x" * 100

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class NewTask(BaseModel):
    content: str


class Task(BaseModel):
    id: str
    content: str
    status: str
    created_at: datetime
    updated_at: datetime | None


def create_app(
    create: Callable[[str], Awaitable[str]], lifespan: Lifespan | None = None
) -> FastAPI:
    """`create` enqueues a task with this content, and gives its id."""
    app = FastAPI(lifespan=lifespan)

    @app.post("/task", status_code=201)
    async def create_task(task: NewTask) -> Task:
        return Task(
            id=await create(task.content),
            content=task.content,
            status="pending",
            created_at=datetime.now(UTC),
            updated_at=None,
        )

    @app.get("/health")
    async def health() -> None:
        return None

    return app


async def many(create: Callable[[str], Awaitable[Any]], count: int, at_once: int = 100) -> None:
    """Enqueue so many, for those who have no verb for it."""
    for start in range(0, count, at_once):
        await asyncio.gather(*(create(CONTENT) for _ in range(start, min(count, start + at_once))))
