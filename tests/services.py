"""What can be done with tasks, as a process has it, over a store and a stream of the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.metrics import Metrics
from tasksvc.services.publisher import Publisher
from tasksvc.services.rescue import Rescue
from tasksvc.services.tasks import TaskService
from tasksvc.services.worker import WorkerService
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream


@dataclass
class Services:
    """Those of one process, which is not registered yet."""

    publisher: Publisher
    worker: WorkerService
    rescue: Rescue
    tasks: TaskService

    @classmethod
    def over(
        cls,
        store: TaskStore,
        stream: TaskStream,
        metrics: Metrics,
        *,
        lease_seconds: float = 5.0,
        lost_margin_seconds: float = 0.5,
        max_attempts: int = 3,
        kinds: Mapping[str, int | None] | None = None,
    ) -> Services:
        kinds = kinds or {DEFAULT_KIND: None}
        bounds = {"group_size": 100, "max_waiting": 1000}
        publisher = Publisher(store, stream, metrics, lost_margin_seconds=lost_margin_seconds)
        worker = WorkerService(
            store, stream, publisher, metrics, kinds, lease_seconds=lease_seconds, **bounds
        )
        return cls(
            publisher,
            worker,
            Rescue(store, stream, publisher, worker, metrics, lease_seconds=lease_seconds),
            TaskService(
                store,
                stream,
                publisher,
                worker,
                metrics,
                kinds,
                max_attempts=max_attempts,
                **bounds,
            ),
        )

    async def flush(self) -> None:
        """Everything is written and published."""
        await self.tasks.flush()
        await self.worker.flush()


MakeServices = Callable[..., Services]
