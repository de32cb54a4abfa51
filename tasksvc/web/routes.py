"""The routes, as one table."""

from __future__ import annotations

from aiohttp import web

from tasksvc.web import views

TASKS = [
    web.post("/task", views.create_task),
    web.get("/task/{task_id}", views.get_task),
    web.patch("/task/{task_id}/cancel", views.cancel_task),
    web.post("/task/{task_id}/retry", views.retry_task),
    web.post("/tasks", views.create_tasks),
    web.get("/tasks", views.find_tasks),
]

OPS = [
    web.get("/health", views.health),
    web.get("/health/live", views.health_live),
    web.get("/health/ready", views.health_ready),
    web.get("/metrics", views.metrics),
]
