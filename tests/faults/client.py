"""A client of the random runs: it uses all that the service offers, and writes down what it saw."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tests.faults.handlers import THREAD_KIND
from tests.faults.history import Operation
from tests.faults.orders import Order

REQUEST_SECONDS = 5.0

_WEIGHTS = {
    "create": 40,
    "create_once": 10,
    "create_many": 3,
    "get": 40,
    "attempts": 5,
    "cancel": 20,
    "retry": 5,
    "cancel_many": 1,
    "retry_many": 2,
}
_NEEDS_TASK = ("get", "attempts", "cancel", "retry")
_STEP = 5
"""Tasks in one cancel or retry by filter."""


class OnceKeys:
    """The Idempotency-Keys that the clients of a run share. Each stands for one and the same order,
    whichever client makes it, and however often."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 1

    def draw(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        """A new one, or one of the last, with the body that belongs to it."""
        if chance.random() < 0.4:
            self._count += 1
        number = chance.randint(max(1, self._count - 4), self._count)
        key = f"once-{self._seed}-{number}"
        return key, Order(key, random.Random(key)).with_options().body()


class Client:
    """Creates, reads, cancels and retries at some service."""

    def __init__(
        self,
        number: int,
        urls: list[str],
        seed: int,
        once_keys: OnceKeys,
        operations: list[Operation],
    ) -> None:
        self._number = number
        self._urls = urls
        self._random = random.Random(f"{seed}-{number}")
        self._once_keys = once_keys
        self._operations = operations
        self._said: list[str] = []
        self._known: list[str] = []
        self._keys = (f"{number}-{count}" for count in itertools.count())

    @property
    def said(self) -> list[str]:
        """The bodies of answers that were not of success."""
        return self._said

    async def run(self, is_over: Callable[[], bool]) -> None:
        timeout = aiohttp.ClientTimeout(REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not is_over():
                await self._act(session)
                await asyncio.sleep(self._random.uniform(0, 0.1))

    async def _act(self, session: aiohttp.ClientSession) -> None:
        (verb,) = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        if not self._known and verb in _NEEDS_TASK:
            verb = "create"
        if verb in _NEEDS_TASK:
            await self._ask_about_task(session, verb)
        elif verb == "create":
            key = next(self._keys)
            await self._post(session, "/task", verb, self._order(key).body(), key)
        elif verb == "create_once":
            key, body = self._once_keys.draw(self._random)
            await self._post(session, "/task", "create", body, key, {"Idempotency-Key": key})
        elif verb == "create_many":
            await self._create_many(session)
        else:
            path = f"/tasks/{verb.removesuffix('_many')}"
            await self._post(session, path, verb, {"filter": self._filter(verb), "limit": _STEP})

    def _order(self, key: str) -> Order:
        order = Order(key, self._random)
        draw = self._random.random()
        if draw < 0.5:
            order.with_options().with_times()
        elif draw < 0.6:
            order.with_options().with_unique_key()
        return order

    def _filter(self, verb: str) -> dict[str, Any]:
        if verb == "cancel_many":
            return {"kind": THREAD_KIND}
        recently = datetime.fromtimestamp(time.time() - 10, UTC).isoformat()
        return {"status": "failed", "created_after": recently}

    async def _ask_about_task(self, session: aiohttp.ClientSession, verb: str) -> None:
        id = self._random.choice(self._known[-30:])
        match verb:
            case "get":
                await self._request(session, "GET", f"/task/{id}", verb, id=id)
            case "attempts":
                await self._request(session, "GET", f"/task/{id}/attempts", verb, id=id)
            case "cancel":
                await self._request(session, "PATCH", f"/task/{id}/cancel", verb, id=id)
            case "retry":
                await self._request(session, "POST", f"/task/{id}/retry", verb, id)

    async def _create_many(self, session: aiohttp.ClientSession) -> None:
        batch, size = next(self._keys), self._random.randint(2, 6)
        orders = [
            Order(f"{batch}.{number}", self._random).with_options().among(batch, size).body()
            for number in range(size)
        ]
        await self._post(session, "/tasks", "create_many", {"tasks": orders}, batch)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        path: str,
        verb: str,
        document: dict[str, Any],
        key: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = {"Content-Type": "application/json", **(headers or {})}
        body = json.dumps(document).encode()
        await self._request(session, "POST", path, verb, key, body=body, headers=headers)

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        verb: str,
        key: str = "",
        *,
        id: str | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        url = self._random.choice(self._urls) + path
        started = time.time()
        code: int | None = None
        document: dict[str, Any] = {}
        try:
            async with session.request(method, url, data=body, headers=headers) as answer:
                text = await answer.text()
                if answer.status in (200, 201):
                    document = json.loads(text)
                else:
                    self._said.append(text)
                code = answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass  # it is unknown whether it took effect
        ids = tuple(document.get("ids") or (task["id"] for task in document.get("tasks", ())))
        id = document.get("id", id)
        if code == 201:
            self._known += ids or [str(id)]
        status = document.get("status")
        ended = time.time()
        self._operations.append(
            Operation(self._number, verb, key, id, started, ended, code, status, ids)
        )
