"""A well-formed request to every route, as bytes."""

from __future__ import annotations

import json
from uuid import uuid4

from tasksvc.web import routes
from tests.wire import JSON, request

_TASK = {"content": "x" * 300, "priority": "low", "delay_seconds": 3600}

_BODIES: dict[str, object] = {
    "POST /task": _TASK,
    "POST /tasks": {"tasks": [_TASK] * 3},
    "POST /tasks/cancel": {"filter": {"kind": "none"}, "dry_run": True},
    "POST /tasks/retry": {"filter": {"kind": "none"}, "dry_run": True},
    "PUT /queues/{name}": {"concurrency": 10},
    "PUT /schedules/{name}": {"cron": "0 0 1 1 *", "task": {"content": "x"}},
}

_QUERIES = {
    "GET /tasks": "?status=failed&limit=10&created_after=2026-01-01T00:00:00Z",
    "GET /queues": "?limit=10&after=a",
    "GET /schedules": "?limit=10&after=a",
}


def requests(task_id: str | None = None) -> list[bytes]:
    """To every route, the reading ones about this task."""
    made = []
    for endpoint in routes.TASKS + routes.OPS:
        id = task_id if endpoint.method == "GET" and task_id else str(uuid4())
        path = endpoint.path.replace("{task_id}", id).replace("{name}", "made")
        if endpoint.body:
            body = json.dumps(_BODIES[endpoint.line]).encode()
            made.append(request(endpoint.method, path, JSON, body=body))
        else:
            query = _QUERIES[endpoint.line] if endpoint.query else ""
            made.append(request(endpoint.method, path + query))
    return made
