"""tasksvc: a background-task service that cannot lose a task."""

from tasksvc.domain.retry import Permanent, Retry
from tasksvc.handlers.context import Context, SyncContext
from tasksvc.handlers.kinds import handler

__all__ = ["Context", "Permanent", "Retry", "SyncContext", "handler"]

__version__ = "0.2.0"
