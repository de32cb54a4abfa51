"""The handlers that run in this process, and how one is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from tasksvc.domain.outcome import Outcome
from tasksvc.domain.task import Claim


class StopReason(Enum):
    """Why a handler is asked to stop."""

    LOST = "lost"
    """The worker no longer holds the task: canceled, or rescued. Its result is not wanted."""

    SHUTDOWN = "shutdown"
    """The process ends; the task is released."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of a handler."""

    claim: Claim
    entry: str | None
    """Its entry in the stream, to acknowledge; None when it has none (yet)."""
    task: asyncio.Task[Outcome | None] | None = None
    stop_reason: StopReason | None = None
    is_over: bool = False
    """Its outcome is written."""

    def stop(self, reason: StopReason) -> None:
        """Asks the handler to end. One that ignores it may be asked again."""
        self.stop_reason = self.stop_reason or reason
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Closes a handler that ignores its cancellation; otherwise the process would wait for
        it."""
        if self.task is not None:
            with suppress(RuntimeError):  # one that ignores this too
                self.task.get_coro().close()
            self.task.cancel()


class RunRegistry:
    """All runs of the process, by the id of their task."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        self._runs[run.claim.id] = run

    def remove(self, run: Run) -> None:
        if self._runs.get(run.claim.id) is run:
            del self._runs[run.claim.id]

    def stop(self, ids: Sequence[str]) -> int:
        """Stops the runs of these tasks, which this worker no longer holds, and returns how many
        there were."""
        runs = [run for id in ids if (run := self._runs.get(id))]
        for run in runs:
            run.stop(StopReason.LOST)
        return len(runs)

    def stop_all(self) -> None:
        for run in list(self._runs.values()):
            run.stop(StopReason.SHUTDOWN)

    def close_all(self) -> None:
        for run in list(self._runs.values()):
            run.close()
