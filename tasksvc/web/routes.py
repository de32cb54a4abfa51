"""The table of endpoints. Routing, the metrics' labels and the tests of docs/api.md read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from marshmallow import Schema

from tasksvc.domain.task import Task
from tasksvc.web.schemas.batches import TasksCreate
from tasksvc.web.schemas.queues import QueuePut, QueueSearch
from tasksvc.web.schemas.schedules import SchedulePut, ScheduleSearch
from tasksvc.web.schemas.shapes import (
    Attempts,
    CanceledTasks,
    HealthJson,
    QueueJson,
    Queues,
    RetriedTasks,
    ScheduleJson,
    Schedules,
    Tasks,
)
from tasksvc.web.schemas.tasks import TaskCreate, TaskSearch, TasksStep
from tasksvc.web.views import ops, queues, schedules, tasks


class Scope(StrEnum):
    """What a client must be allowed to do."""

    READ = "tasks:read"
    WRITE = "tasks:write"
    QUEUES = "queues:write"
    METRICS = "metrics"
    NONE = ""
    """Open to every client."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    line: str
    """Method and path, as in `GET /task/{task_id}`."""
    view: Handler
    scope: Scope
    answers: Mapping[int, type[msgspec.Struct] | None]
    """By its status code, the shape of each answer; None for one that is not JSON."""
    errors: tuple[int, ...] = ()
    """The status codes of its own problems. Those that may happen anywhere, such as 405 and 503,
    stand at the head of docs/api.md."""
    body: type[Schema] | None = None
    query: type[Schema] | None = None

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]


_READ, _WRITE, _QUEUES, _OPEN = Scope.READ, Scope.WRITE, Scope.QUEUES, Scope.NONE

_HEALTH = {200: HealthJson, 503: HealthJson}

TASKS = (
    Endpoint(
        "POST /task", tasks.create_task, _WRITE, {201: Task, 200: Task}, (400, 422), TaskCreate
    ),
    Endpoint("GET /task/{task_id}", tasks.get_task, _READ, {200: Task}, (404,)),
    Endpoint("GET /task/{task_id}/attempts", tasks.get_attempts, _READ, {200: Attempts}, (404,)),
    Endpoint("PATCH /task/{task_id}/cancel", tasks.cancel_task, _WRITE, {200: Task}, (404, 400)),
    Endpoint("POST /task/{task_id}/retry", tasks.retry_task, _WRITE, {201: Task}, (404, 400, 409)),
    Endpoint("POST /tasks", tasks.create_tasks, _WRITE, {201: Tasks}, (400, 422), TasksCreate),
    Endpoint("GET /tasks", tasks.find_tasks, _READ, {200: Tasks}, (400, 422), query=TaskSearch),
    Endpoint(
        "POST /tasks/cancel",
        tasks.cancel_tasks,
        _WRITE,
        {200: CanceledTasks},
        (400, 422),
        TasksStep,
    ),
    Endpoint(
        "POST /tasks/retry", tasks.retry_tasks, _WRITE, {200: RetriedTasks}, (400, 422), TasksStep
    ),
    Endpoint("GET /queues", queues.find_queues, _READ, {200: Queues}, (422,), query=QueueSearch),
    Endpoint("GET /queues/{name}", queues.get_queue, _READ, {200: QueueJson}, (404,)),
    Endpoint(
        "PUT /queues/{name}",
        queues.put_queue,
        _QUEUES,
        {200: QueueJson, 201: QueueJson},
        (422,),
        QueuePut,
    ),
    Endpoint("DELETE /queues/{name}", queues.delete_queue, _QUEUES, {204: None}, (404, 409)),
    Endpoint("POST /queues/{name}/pause", queues.pause_queue, _QUEUES, {200: QueueJson}, (404,)),
    Endpoint("POST /queues/{name}/resume", queues.resume_queue, _QUEUES, {200: QueueJson}, (404,)),
    Endpoint(
        "PUT /schedules/{name}",
        schedules.put_schedule,
        _QUEUES,
        {200: ScheduleJson, 201: ScheduleJson},
        (409, 422),
        SchedulePut,
    ),
    Endpoint("GET /schedules/{name}", schedules.get_schedule, _READ, {200: ScheduleJson}, (404,)),
    Endpoint(
        "GET /schedules",
        schedules.find_schedules,
        _READ,
        {200: Schedules},
        (422,),
        query=ScheduleSearch,
    ),
    Endpoint("DELETE /schedules/{name}", schedules.delete_schedule, _QUEUES, {204: None}, (404,)),
)

OPS = (
    Endpoint("GET /health", ops.health, _OPEN, _HEALTH),
    Endpoint("GET /health/live", ops.health_live, _OPEN, _HEALTH),
    Endpoint("GET /health/ready", ops.health_ready, _OPEN, _HEALTH),
    Endpoint("GET /metrics", ops.metrics, Scope.METRICS, {200: None}),
)


def routes(endpoints: Iterable[Endpoint]) -> list[web.RouteDef]:
    """Returns the routes of the endpoints; a GET also answers HEAD."""
    return [
        web.RouteDef(
            each.method,
            each.path,
            each.view,
            {"expect_handler": _leave_to_the_reader}
            | ({"allow_head": True} if each.method == "GET" else {}),
        )
        for each in endpoints
    ]


async def _leave_to_the_reader(request: web.Request) -> None:
    """Answers an expectation with nothing: what reads the body says `100 Continue` first."""
