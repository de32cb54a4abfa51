"""Every name in Redis."""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "tasksvc"
"""The consumer group of all processes."""

FIELD = "id"
"""The only field of an entry: the task's id. Its content stays in PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names below one prefix, so that services can share a Redis."""

    prefix: str

    @property
    def tasks(self) -> str:
        """The stream of the ids of tasks that are due."""
        return f"{self.prefix}:tasks"

    @property
    def canceled(self) -> str:
        """The channel that tells the ids of tasks to stop."""
        return f"{self.prefix}:canceled"


def consumer_name(worker_id: str, number: int) -> str:
    """The name in the group of a worker's nth consumer."""
    return f"{worker_id}/{number}"


def worker_of(name: str) -> str:
    """Whose consumer has this name."""
    return name.rpartition("/")[0]
