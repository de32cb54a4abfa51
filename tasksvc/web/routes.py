"""The routes, as one table."""

from __future__ import annotations

from aiohttp import web

from tasksvc.web import queues, schedules, views

TASKS = [
    web.post("/task", views.create_task),
    web.get("/task/{task_id}", views.get_task),
    web.get("/task/{task_id}/attempts", views.get_attempts),
    web.patch("/task/{task_id}/cancel", views.cancel_task),
    web.post("/task/{task_id}/retry", views.retry_task),
    web.post("/tasks", views.create_tasks),
    web.get("/tasks", views.find_tasks),
    web.post("/tasks/cancel", views.cancel_tasks),
    web.post("/tasks/retry", views.retry_tasks),
    web.get("/queues", queues.find_queues),
    web.get("/queues/{name}", queues.get_queue),
    web.put("/queues/{name}", queues.put_queue),
    web.delete("/queues/{name}", queues.delete_queue),
    web.post("/queues/{name}/pause", queues.pause_queue),
    web.post("/queues/{name}/resume", queues.resume_queue),
    web.put("/schedules/{name}", schedules.put_schedule),
    web.get("/schedules/{name}", schedules.get_schedule),
    web.get("/schedules", schedules.find_schedules),
    web.delete("/schedules/{name}", schedules.delete_schedule),
]

OPS = [
    web.get("/health", views.health),
    web.get("/health/live", views.health_live),
    web.get("/health/ready", views.health_ready),
    web.get("/metrics", views.metrics),
]
