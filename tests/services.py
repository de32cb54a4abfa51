"""What can be done with tasks, as a process has it, over a store and a stream of the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.metrics import Metrics
from tasksvc.runs import RunRegistry
from tasksvc.services.direct_start import DirectStart
from tasksvc.services.publisher import Publisher
from tasksvc.services.rescue import RescueService
from tasksvc.services.tasks import TaskService
from tasksvc.services.worker import WorkerService
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream


@dataclass
class Services:
    """Those of one process, which is not registered yet."""

    runs: RunRegistry
    direct_start: DirectStart
    publisher: Publisher
    worker: WorkerService
    rescue: RescueService
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
        stop_runs: Callable[[Sequence[str]], object] | None = None,
        wake_relay_in: Callable[[float], object] = float,
    ) -> Services:
        kinds = kinds or {DEFAULT_KIND: None}
        runs, direct_start = RunRegistry(), DirectStart(kinds)
        bounds = {"group_size": 100, "max_waiting": 1000}
        publisher = Publisher(
            store,
            stream,
            metrics,
            lost_margin_seconds=lost_margin_seconds,
            wake_relay_in=wake_relay_in,
        )
        worker = WorkerService(
            store,
            stream,
            publisher,
            metrics,
            kinds,
            stop_runs=stop_runs or runs.stop,
            direct_start=direct_start,
            lease_seconds=lease_seconds,
            **bounds,
        )
        return cls(
            runs,
            direct_start,
            publisher,
            worker,
            RescueService(store, stream, publisher, worker, metrics, lease_seconds=lease_seconds),
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
