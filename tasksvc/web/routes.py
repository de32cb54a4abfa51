"""The table of endpoints. Routing, the metrics' labels and the tests of docs/api.md read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web
from aiohttp.typedefs import Handler
from marshmallow import Schema

from tasksvc.web.schemas.batches import TasksCreate
from tasksvc.web.schemas.queues import QueuePut, QueueSearch
from tasksvc.web.schemas.schedules import SchedulePut, ScheduleSearch
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

    method: str
    path: str
    view: Handler
    scope: Scope
    answers: tuple[int, ...]
    """Its own status codes. The general ones, such as 405 and 503, are those of every endpoint."""
    body: type[Schema] | None = None
    query: type[Schema] | None = None


_READ, _WRITE, _QUEUES = Scope.READ, Scope.WRITE, Scope.QUEUES

TASKS = (
    Endpoint("POST", "/task", tasks.create_task, _WRITE, (201, 200, 400, 422), body=TaskCreate),
    Endpoint("GET", "/task/{task_id}", tasks.get_task, _READ, (200, 404)),
    Endpoint("GET", "/task/{task_id}/attempts", tasks.get_attempts, _READ, (200, 404)),
    Endpoint("PATCH", "/task/{task_id}/cancel", tasks.cancel_task, _WRITE, (200, 404, 400)),
    Endpoint("POST", "/task/{task_id}/retry", tasks.retry_task, _WRITE, (201, 404, 400, 409)),
    Endpoint("POST", "/tasks", tasks.create_tasks, _WRITE, (201, 400, 422), body=TasksCreate),
    Endpoint("GET", "/tasks", tasks.find_tasks, _READ, (200, 400, 422), query=TaskSearch),
    Endpoint("POST", "/tasks/cancel", tasks.cancel_tasks, _WRITE, (200, 400, 422), body=TasksStep),
    Endpoint("POST", "/tasks/retry", tasks.retry_tasks, _WRITE, (200, 400, 422), body=TasksStep),
    Endpoint("GET", "/queues", queues.find_queues, _READ, (200, 422), query=QueueSearch),
    Endpoint("GET", "/queues/{name}", queues.get_queue, _READ, (200, 404)),
    Endpoint("PUT", "/queues/{name}", queues.put_queue, _QUEUES, (200, 201, 422), body=QueuePut),
    Endpoint("DELETE", "/queues/{name}", queues.delete_queue, _QUEUES, (204, 404, 409)),
    Endpoint("POST", "/queues/{name}/pause", queues.pause_queue, _QUEUES, (200, 404)),
    Endpoint("POST", "/queues/{name}/resume", queues.resume_queue, _QUEUES, (200, 404)),
    Endpoint(
        *("PUT", "/schedules/{name}", schedules.put_schedule, _QUEUES, (200, 201, 409, 422)),
        body=SchedulePut,
    ),
    Endpoint("GET", "/schedules/{name}", schedules.get_schedule, _READ, (200, 404)),
    Endpoint(
        "GET", "/schedules", schedules.find_schedules, _READ, (200, 422), query=ScheduleSearch
    ),
    Endpoint("DELETE", "/schedules/{name}", schedules.delete_schedule, _QUEUES, (204, 404)),
)

OPS = (
    Endpoint("GET", "/health", ops.health, Scope.NONE, (200, 503)),
    Endpoint("GET", "/health/live", ops.health_live, Scope.NONE, (200, 503)),
    Endpoint("GET", "/health/ready", ops.health_ready, Scope.NONE, (200, 503)),
    Endpoint("GET", "/metrics", ops.metrics, Scope.METRICS, (200,)),
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
