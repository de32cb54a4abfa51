"""A well-formed request to every route, as bytes."""

from __future__ import annotations

import json
from uuid import uuid4

from tasksvc.web import routes
from tests.wire import JSON, request

_TASK = {"content": "x" * 300, "priority": "low", "delay_seconds": 3600}

_BODIES: dict[tuple[str, str], object] = {
    ("POST", "/task"): _TASK,
    ("POST", "/tasks"): {"tasks": [_TASK] * 3},
    ("POST", "/tasks/cancel"): {"filter": {"kind": "none"}, "dry_run": True},
    ("POST", "/tasks/retry"): {"filter": {"kind": "none"}, "dry_run": True},
    ("PUT", "/queues/{name}"): {"concurrency": 10},
    ("PUT", "/schedules/{name}"): {"cron": "0 0 1 1 *", "task": {"content": "x"}},
}

_QUERIES = {
    "/tasks": "?status=failed&limit=10&created_after=2026-01-01T00:00:00Z",
    "/queues": "?limit=10&after=a",
    "/schedules": "?limit=10&after=a",
}


def requests(task_id: str | None = None) -> list[bytes]:
    """To every route, the reading ones about this task."""
    made = []
    for route in [*routes.TASKS, *routes.OPS]:
        id = task_id if route.method == "GET" and task_id else str(uuid4())
        path = route.path.replace("{task_id}", id).replace("{name}", "made")
        body = _BODIES.get((route.method, route.path))
        if body is not None:
            made.append(request(route.method, path, JSON, body=json.dumps(body).encode()))
        else:
            made.append(request(route.method, path + _QUERIES.get(route.path, "")))
    return made
