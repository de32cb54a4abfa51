"""One live task at a time: `unique_key`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import JSON, Answer, assert_problem, post, request, talk


def create(service: ServiceProcess, unique_key: object, *headers: str, **more: object) -> Answer:
    body = {"content": "x", "unique_key": unique_key, **more}
    return talk(service.port, post(json.dumps(body).encode(), *headers))


def cancel(service: ServiceProcess, id: str) -> None:
    status, _, _ = service.request("PATCH", f"/task/{id}/cancel")
    assert status == 200


def retry(service: ServiceProcess, id: str) -> Answer:
    return talk(service.port, request("POST", f"/task/{id}/retry"))


async def test_second_create_gets_the_live_task_and_makes_nothing(idle: ServiceProcess) -> None:
    first, second = create(idle, "u"), create(idle, "u", content="other")

    assert (first.status, second.status) == (201, 200)
    assert second.json() == first.json()
    assert first.json()["unique_key"] == "u"
    assert second.headers["location"] == first.headers["location"]
    assert query(idle.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(1,)]


async def test_other_keys_make_other_tasks(idle: ServiceProcess) -> None:
    answers = [create(idle, key) for key in ("u", "U", " u", "ü" * 255)]

    assert [answer.status for answer in answers] == [201] * 4
    assert answers[3].json()["unique_key"] == "ü" * 255


async def test_final_task_makes_room_for_another(shared_service: ServiceProcess) -> None:
    key = str(uuid4())
    first = create(shared_service, key).json()["id"]
    await eventually(lambda: shared_service.task(first)["status"] == "completed")

    second = create(shared_service, key)

    assert second.status == 201
    assert second.json()["id"] != first
    await eventually(lambda: shared_service.task(second.json()["id"])["status"] == "completed")


@pytest.mark.parametrize("key", ["", "x" * 256, "nul \0", 5, ["u"], True])
async def test_key_that_will_not_do_is_named(idle: ServiceProcess, key: object) -> None:
    answer = create(idle, key)

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/unique_key"]


async def test_idempotency_key_remembers_what_was_given_back(idle: ServiceProcess) -> None:
    header = f"Idempotency-Key: {uuid4()}"
    first = create(idle, "u").json()["id"]

    answers = [create(idle, "u", header) for _ in range(2)]
    cancel(idle, first)
    answers.append(create(idle, "u", header))

    assert [answer.status for answer in answers] == [200] * 3
    assert {answer.json()["id"] for answer in answers} == {first}
    replayed = ["idempotent-replayed" in answer.headers for answer in answers]
    assert replayed == [False, True, True]
    assert answers[2].json()["status"] == "canceled"
    assert create(idle, "u").status == 201


async def test_idempotency_key_of_a_create_that_made_its_task(idle: ServiceProcess) -> None:
    header = f"Idempotency-Key: {uuid4()}"

    answers = [create(idle, "u", header) for _ in range(2)]

    assert [answer.status for answer in answers] == [201] * 2
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert_problem(create(idle, "other", header), 422)


async def test_many_with_one_key_get_one_task(shared_service: ServiceProcess) -> None:
    """Though it takes no time to be final."""
    key, other = str(uuid4()), str(uuid4())
    orders = [{"content": str(n), "unique_key": key} for n in range(3)]
    orders += [{"content": "other", "unique_key": other}, {"content": "plain"}]
    body = json.dumps({"tasks": orders}).encode()

    answer = talk(shared_service.port, request("POST", "/tasks", JSON, body=body))

    assert answer.status == 201
    tasks = answer.json()["tasks"]
    assert [task["content"] for task in tasks] == ["0", "0", "0", "other", "plain"]
    assert len({task["id"] for task in tasks}) == 3
    for id in {task["id"] for task in tasks}:
        await eventually(lambda id=id: shared_service.task(id)["status"] == "completed")


async def test_many_get_the_live_task(idle: ServiceProcess) -> None:
    first = create(idle, "u").json()
    body = json.dumps({"tasks": [{"content": "y", "unique_key": "u"}, {"content": "z"}]}).encode()

    tasks = talk(idle.port, request("POST", "/tasks", JSON, body=body)).json()["tasks"]

    assert tasks[0] == first
    assert tasks[1]["content"] == "z"
    assert query(idle.env["DATABASE_URL"], "SELECT count(*) FROM task") == [(2,)]


async def test_retry_keeps_the_key_and_conflicts_with_another_live_task(
    idle: ServiceProcess,
) -> None:
    old = create(idle, "u", content="secret").json()["id"]
    cancel(idle, old)
    other = create(idle, "u").json()["id"]

    refused = retry(idle, old)

    assert_problem(refused, 409)
    assert b"secret" not in refused.body
    cancel(idle, other)
    retried = retry(idle, old)
    assert retried.status == 201
    assert (retried.json()["unique_key"], retried.json()["retry_of"]) == ("u", old)
    assert create(idle, "u").json()["id"] == retried.json()["id"]


async def test_creates_at_the_same_moment_in_two_processes(
    start_service: Callable[..., ServiceProcess],
) -> None:
    """Tasks end while others are created: each create is answered, and two are never live."""
    services = [start_service(), start_service()]

    def work(number: int) -> list[Any]:
        service = services[number % 2]
        return [
            create(service, f"{step % 3}", *([f"Idempotency-Key: {uuid4()}"] if step % 2 else []))
            for step in range(15)
        ]

    answers = await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(8)))

    flat = [answer for each in answers for answer in each]
    assert {answer.status for answer in flat} <= {200, 201}
    ids = {answer.json()["id"] for answer in flat}
    assert len([answer for answer in flat if answer.status == 201]) == len(ids)
    await eventually(lambda: services[0].statuses(ids) == {"completed"})
