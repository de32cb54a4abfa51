"""Exactly one create, however often it is asked for: `Idempotency-Key`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import Answer, assert_problem, post, talk


def create(service: ServiceProcess, key: str, body: bytes = b'{"content": "x"}') -> Answer:
    return talk(service.port, post(body, f"Idempotency-Key: {key}"))


async def test_second_create_gets_the_task_of_the_first(shared_service: ServiceProcess) -> None:
    key = str(uuid4())
    first = create(shared_service, key)
    id = first.json()["id"]
    await eventually(lambda: shared_service.task(id)["status"] == "completed")

    again = create(shared_service, key, b' { "content" : "\\u0078" } ')

    assert (first.status, again.status) == (201, 201)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == id
    assert again.json()["status"] == "completed"


async def test_other_keys_make_other_tasks(shared_service: ServiceProcess) -> None:
    ids = {create(shared_service, f"{uuid4()}").json()["id"] for _ in range(3)}

    assert len(ids) == 3


@pytest.mark.parametrize("body", [b'{"content": "y"}', b'{"content": "x", "max_attempts": 1}'])
async def test_same_key_with_another_body_is_refused(
    shared_service: ServiceProcess, body: bytes
) -> None:
    key = str(uuid4())
    create(shared_service, key)

    problem = assert_problem(create(shared_service, key, body), 422)

    assert "Idempotency-Key" in problem["detail"]
    assert create(shared_service, key).status == 201


async def test_refused_create_uses_no_key_up(shared_service: ServiceProcess) -> None:
    key = str(uuid4())
    assert_problem(create(shared_service, key, b"{"), 400)

    answer = create(shared_service, key)

    assert answer.status == 201
    assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "\x7f", "\xfc"])
async def test_key_that_will_not_do(shared_service: ServiceProcess, key: str) -> None:
    assert create(shared_service, key).status == 400


async def test_two_keys_are_refused(shared_service: ServiceProcess) -> None:
    keys = [f"Idempotency-Key: {uuid4()}" for _ in range(2)]

    assert_problem(talk(shared_service.port, post(b'{"content": "x"}', *keys)), 400)


async def test_creates_at_the_same_moment_in_two_processes_make_one_task(
    start_service: Callable[..., ServiceProcess],
) -> None:
    services = [start_service(), start_service()]
    keys = [str(uuid4()) for _ in range(5)]

    answers = await asyncio.gather(
        *(
            asyncio.to_thread(create, services[number % 2], key)
            for number in range(10)
            for key in keys
        )
    )

    assert {answer.status for answer in answers} == {201}
    ids = [answer.json()["id"] for answer in answers]
    assert len(set(ids)) == len(keys)
    replayed = [answer for answer in answers if "idempotent-replayed" in answer.headers]
    assert len(replayed) == 9 * len(keys)
    url = services[0].env["DATABASE_URL"]
    assert query(url, "SELECT count(*) FROM task") == [(len(keys),)]
    await eventually(lambda: services[0].statuses(set(ids)) == {"completed"})


async def test_key_goes_with_options(shared_service: ServiceProcess) -> None:
    key = str(uuid4())
    body = json.dumps({"content": "x", "delay_seconds": 3600}).encode()

    first, again = create(shared_service, key, body), create(shared_service, key, body)

    assert first.json() == again.json()
    assert first.json()["run_at"]
