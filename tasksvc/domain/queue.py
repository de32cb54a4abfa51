"""What a queue is: tasks under one name, with a limit and a pause."""

from __future__ import annotations

from typing import NamedTuple


class Queue(NamedTuple):
    """A queue as its operators see it. Tasks without a queue count in no queue."""

    name: str
    concurrency: int | None
    """How many of its tasks may run at a time, in all processes together; None is no limit."""
    is_paused: bool
    """Its tasks don't start. Those that run go on."""
    pending: int
    processing: int
    oldest_seconds: float
    """How long the oldest task that is due has waited; 0 when none waits."""
    rate: float
    """How many of its tasks end per second, over the last minute or two."""

    @property
    def empty_seconds(self) -> float | None:
        """Seconds until the queue is empty at the current rate; None when it would never be."""
        left = self.pending + self.processing
        if not left:
            return 0.0
        return left / self.rate if self.rate and not self.is_paused else None
