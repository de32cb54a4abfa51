"""Queues, against the running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.harness import ServiceProcess, eventually, query
from tests.wire import assert_problem, post, request, talk


def create(service: ServiceProcess, **options: object) -> dict[str, Any]:
    answer = talk(service.port, post(json.dumps({"content": "x", **options}).encode()))
    assert answer.status == 201, answer.body
    task: dict[str, Any] = answer.json()
    return task


def put(service: ServiceProcess, name: str, body: object) -> tuple[int, dict[str, Any]]:
    head = "Content-Type: application/json"
    answer = talk(
        service.port, request("PUT", f"/queues/{name}", head, body=json.dumps(body).encode())
    )
    return answer.status, answer.json()


def ask(service: ServiceProcess, method: str, path: str) -> tuple[int, dict[str, Any]]:
    status, _, body = service.request(method, path)
    return status, json.loads(body)


def new_name() -> str:
    return f"queue-{uuid4()}"


async def test_limit_holds_over_processes_and_all_ends(
    start_service: Callable[..., ServiceProcess],
) -> None:
    services = [start_service(TASK_SIMULATED_SECONDS=0.1) for _ in range(2)]
    assert put(services[0], "mail", {"concurrency": 2})[0] == 201
    ids = [create(services[n % 2], queue="mail")["id"] for n in range(12)]
    most = 0

    def all_completed() -> bool:
        nonlocal most
        counts = dict(
            query(
                services[0].env["DATABASE_URL"], "SELECT status, count(*) FROM task GROUP BY status"
            )
        )
        most = max(most, counts.get("processing", 0))
        return counts == {"completed": len(ids)}

    await eventually(all_completed)
    assert most == 2
    assert services[0].task(ids[0])["queue"] == "mail"
    # With two at a time, the twelve took six rounds of 0.1 s and a little more, not of the relay's.
    ((seconds,),) = query(
        services[0].env["DATABASE_URL"],
        "SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 FROM task",
    )
    assert seconds > 0.5


async def test_paused_queue_waits_until_it_is_resumed(shared_service: ServiceProcess) -> None:
    name = new_name()
    put(shared_service, name, {"concurrency": None})
    status, queue = ask(shared_service, "POST", f"/queues/{name}/pause")
    assert (status, queue["is_paused"]) == (200, True)
    waiting = create(shared_service, queue=name)["id"]
    other = create(shared_service)["id"]

    await eventually(lambda: shared_service.task(other)["status"] == "completed")
    assert shared_service.task(waiting)["status"] == "pending"
    await eventually(lambda: shared_service.metric("tasksvc_queues_paused") >= 1)
    status, queue = ask(shared_service, "GET", f"/queues/{name}")
    assert (queue["pending"], queue["processing"], queue["empty_seconds"]) == (1, 0, None)
    assert queue["oldest_seconds"] > 0

    status, queue = ask(shared_service, "POST", f"/queues/{name}/resume")
    assert (status, queue["is_paused"]) == (200, False)
    await eventually(lambda: shared_service.task(waiting)["status"] == "completed")
    status, queue = ask(shared_service, "GET", f"/queues/{name}")
    assert (queue["pending"], queue["oldest_seconds"], queue["empty_seconds"]) == (0, 0, 0)


async def test_queues_are_listed(shared_service: ServiceProcess) -> None:
    first, second = sorted([new_name(), new_name()])
    assert put(shared_service, second, {"concurrency": 3})[0] == 201
    status, queue = put(shared_service, second, {"concurrency": 4})
    assert (status, queue["name"], queue["concurrency"]) == (200, second, 4)
    create(shared_service, queue=first)

    _, found = ask(shared_service, "GET", "/queues")
    names = [queue["name"] for queue in found["queues"]]
    assert names == sorted(names)
    assert {first, second} <= set(names)
    _, found = ask(shared_service, "GET", f"/queues?after={first}")
    assert first not in [queue["name"] for queue in found["queues"]]


async def test_queue_is_deleted_once_it_has_no_live_tasks(shared_service: ServiceProcess) -> None:
    name = new_name()
    put(shared_service, name, {"concurrency": None})
    ask(shared_service, "POST", f"/queues/{name}/pause")
    id = create(shared_service, queue=name)["id"]
    delete = request("DELETE", f"/queues/{name}")
    assert_problem(talk(shared_service.port, delete), 409)
    shared_service.request("PATCH", f"/task/{id}/cancel")

    assert talk(shared_service.port, delete).status == 204
    assert_problem(talk(shared_service.port, delete), 404)
    assert shared_service.task(id)["queue"] == name


async def test_tasks_of_a_queue_are_found_and_canceled_together(
    shared_service: ServiceProcess,
) -> None:
    name = new_name()
    put(shared_service, name, {"concurrency": None})
    ask(shared_service, "POST", f"/queues/{name}/pause")
    ids = [create(shared_service, queue=name)["id"] for _ in range(3)]
    create(shared_service)

    _, found = ask(shared_service, "GET", f"/tasks?queue={name}")
    assert [task["id"] for task in found["tasks"]] == ids[::-1]
    body = json.dumps({"filter": {"queue": name}}).encode()
    head = "Content-Type: application/json"
    answer = talk(shared_service.port, request("POST", "/tasks/cancel", head, body=body))
    assert answer.json()["canceled"] == 3
    assert ask(shared_service, "GET", f"/queues/{name}")[1]["pending"] == 0
    assert ask(shared_service, "GET", "/tasks?queue=.")[0] == 422


async def test_retry_stays_in_its_queue(shared_service: ServiceProcess) -> None:
    task = create(shared_service, queue=new_name())
    await eventually(lambda: shared_service.task(task["id"])["status"] == "completed")

    status, retried = ask(shared_service, "POST", f"/task/{task['id']}/retry")
    assert (status, retried["queue"]) == (201, task["queue"])


@pytest.mark.parametrize("name", ["", "a b", "ä", ".", "..", "a" * 101, "a/b", "a\n", 1, []])
async def test_names_that_will_not_do(shared_service: ServiceProcess, name: object) -> None:
    answer = talk(shared_service.port, post(json.dumps({"content": "x", "queue": name}).encode()))
    assert answer.status == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/queue"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/concurrency"),
        ({"concurrency": 0}, "/concurrency"),
        ({"concurrency": "1"}, "/concurrency"),
        ({"concurrency": 1.5}, "/concurrency"),
        ({"concurrency": 10**9}, "/concurrency"),
        ({"concurrency": 1, "paused": True}, "/paused"),
        ([], ""),
    ],
)
async def test_limits_that_will_not_do(
    shared_service: ServiceProcess, body: object, pointer: str
) -> None:
    status, problem = put(shared_service, new_name(), body)

    assert status == 422
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/queues/none"),
        ("POST", "/queues/none/pause"),
        ("POST", "/queues/none/resume"),
        ("GET", "/queues/.none"),
    ],
)
async def test_queue_that_is_not_there(
    shared_service: ServiceProcess, method: str, path: str
) -> None:
    status, problem = ask(shared_service, method, path)

    assert (status, problem["detail"]) == (404, "There is no queue with this name.")


async def test_name_and_query_that_will_not_do(shared_service: ServiceProcess) -> None:
    assert put(shared_service, "a:b", {"concurrency": 1})[0] == 422
    assert ask(shared_service, "GET", "/queues?before=x")[0] == 422
