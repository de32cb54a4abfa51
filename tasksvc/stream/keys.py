"""Every name in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from tasksvc.domain.task import DEFAULT_LANE, Lane, Priority

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
        """The stream of the ids of tasks that are due, in the default lane."""
        return f"{self.prefix}:tasks"

    @property
    def lanes(self) -> str:
        """The set of the names of all lanes that were ever used."""
        return f"{self.prefix}:lanes"

    @property
    def canceled(self) -> str:
        """The channel for the ids of tasks to stop."""
        return f"{self.prefix}:canceled"

    def stream(self, lane: Lane) -> str:
        """Returns the key of the stream with the ids of due tasks of a lane."""
        return self.tasks if lane == DEFAULT_LANE else f"{self.tasks}:{lane_name(lane)}"

    def lane_name_of(self, stream: str) -> str:
        """Returns the name of the lane of a stream that is not the default one."""
        return stream.removeprefix(f"{self.tasks}:")


def lane_name(lane: Lane) -> str:
    """Returns the name of a lane in visible characters, without a comma or an @."""
    return f"{lane.priority}:{quote(lane.kind, safe='')}"


def lane_of(name: str) -> Lane | None:
    """Returns the lane of that name; None when no lane has it."""
    priority, _, kind = name.partition(":")
    return Lane(unquote(kind), Priority(priority)) if priority in list(Priority) else None


def consumer_name(worker_id: str, number: int) -> str:
    """Returns the name of a worker's nth consumer in the group."""
    return f"{worker_id}/{number}"


def worker_of(name: str) -> str:
    """Returns the id of the worker of the consumer with this name."""
    return name.rpartition("/")[0]
