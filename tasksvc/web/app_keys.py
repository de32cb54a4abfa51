"""The keys of what the application carries. Views import this file, not the application."""

from __future__ import annotations

from aiohttp import web

from tasksvc.metrics import Metrics
from tasksvc.services.queues import QueueService
from tasksvc.services.schedules import ScheduleService
from tasksvc.services.tasks import TaskService
from tasksvc.web.health import Health
from tasksvc.web.limits import Arriving, Limits

SERVICE = web.AppKey("service", TaskService)
QUEUES = web.AppKey("queues", QueueService)
SCHEDULES = web.AppKey("schedules", ScheduleService)
METRICS = web.AppKey("metrics", Metrics)
HEALTH = web.AppKey("health", Health)
LIMITS = web.AppKey("limits", Limits)
ARRIVING = web.AppKey("arriving", Arriving)
