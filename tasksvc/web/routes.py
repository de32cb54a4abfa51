"""The routes, as one table."""

from __future__ import annotations

from aiohttp import web

from tasksvc.web.views import ops, queues, schedules, tasks

TASKS = [
    web.post("/task", tasks.create_task),
    web.get("/task/{task_id}", tasks.get_task),
    web.get("/task/{task_id}/attempts", tasks.get_attempts),
    web.patch("/task/{task_id}/cancel", tasks.cancel_task),
    web.post("/task/{task_id}/retry", tasks.retry_task),
    web.post("/tasks", tasks.create_tasks),
    web.get("/tasks", tasks.find_tasks),
    web.post("/tasks/cancel", tasks.cancel_tasks),
    web.post("/tasks/retry", tasks.retry_tasks),
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
    web.get("/health", ops.health),
    web.get("/health/live", ops.health_live),
    web.get("/health/ready", ops.health_ready),
    web.get("/metrics", ops.metrics),
]
