"""For tests of handlers: a single run without any server, and a service with servers of its own."""

from tasksvc.testing.fixtures import service_fixture
from tasksvc.testing.process import ServiceProcess, run_service
from tasksvc.testing.running import TaskRun, run_task, run_task_sync

__all__ = [
    "ServiceProcess",
    "TaskRun",
    "run_service",
    "run_task",
    "run_task_sync",
    "service_fixture",
]
