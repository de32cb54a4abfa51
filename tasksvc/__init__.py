"""tasksvc: a background-task service that cannot lose a task."""

__version__ = "0.1.0"
