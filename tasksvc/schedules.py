"""What the service can do with a schedule. Its tasks are like all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from tasksvc.domain import cron
from tasksvc.domain.errors import ContentRefused, ScheduleNotFound, TooManySchedules
from tasksvc.domain.schedule import Missed, Schedule, ScheduleOrder, Tick
from tasksvc.domain.task import Options
from tasksvc.metrics import Metrics
from tasksvc.service import TaskService
from tasksvc.store.schedule_store import ScheduleStore

log = structlog.get_logger(__name__)

MAX_SCHEDULES = 1000
"""All of them are in one answer, and may be due at the same moment."""

_LATE = timedelta(minutes=1)
"""What is later was missed."""


class ScheduleService:
    """put, get, find, delete for people and programs; run_due for the duty.

    Every method raises Unavailable when PostgreSQL is away, and what it names beside that.
    """

    def __init__(self, store: ScheduleStore, tasks: TaskService, metrics: Metrics) -> None:
        self._store = store
        self._tasks = tasks
        self._runs = metrics.schedule_runs
        self.on_put: Callable[[], object] = lambda: None
        """Told that a schedule may be due earlier than was known."""

    async def put(self, name: str, order: ScheduleOrder) -> tuple[Schedule, bool]:
        """The schedule, and whether it is new.

        Raises UnknownKind, InvalidCron, and TooManySchedules.
        """
        if (kind := order.task.get("kind")) is not None:
            await self._tasks.check_kind(kind)
        next_run_at = None
        if not order.is_paused:
            now = await self._store.read_clock()
            next_run_at = cron.following(order.cron, order.timezone, now)
        put = await self._store.put_schedule(name, order, next_run_at, MAX_SCHEDULES)
        if put is None:
            raise TooManySchedules
        self.on_put()
        return put

    async def get(self, name: str) -> Schedule:
        """Raises ScheduleNotFound."""
        found = await self._store.get_schedules(name)
        if not found:
            raise ScheduleNotFound
        return found[0]

    async def find(self) -> list[Schedule]:
        """All of them, in the order of their names."""
        return await self._store.find_schedules()

    async def delete(self, name: str) -> None:
        """The tasks that it has made stay. Raises ScheduleNotFound."""
        if not await self._store.delete_schedule(name):
            raise ScheduleNotFound

    async def run_due(self) -> tuple[int, float | None]:
        """Makes the tasks of the schedules that are due: how many of these went on, and the seconds
        until the next is due (None: never)."""
        due = await self._store.find_due_schedules()
        if due is None:
            return 0, None
        ticks = [tick for each in due.schedules if (tick := self._tick(each, due.now)) is not None]
        went_on = await self._run(ticks) if ticks else []
        made = {id for _, id in went_on if id is not None}
        self._runs["made"].add(len(made))
        self._runs["skipped"].add(len(went_on) - len(made))
        self._tasks.publish_soon(
            tick.task for tick in ticks if tick.task is not None and tick.task.id in made
        )
        return len(went_on), due.next_seconds

    async def _run(self, ticks: Sequence[Tick]) -> list[tuple[str, str | None]]:
        try:
            return await self._store.run_schedules(ticks)
        except ContentRefused:
            # One bad schedule must not stop the others: halve until it stands alone.
            if len(ticks) == 1:
                log.error("Refused", action="schedule_refused", schedule=ticks[0].schedule.name)
                return []
            middle = len(ticks) // 2
            return [*await self._run(ticks[:middle]), *await self._run(ticks[middle:])]

    def _tick(self, schedule: Schedule, now: datetime) -> Tick | None:
        """None when this process can't tell what to do: another one may."""
        assert schedule.next_run_at is not None
        try:
            scheduled_for, next_run_at = cron.around(
                schedule.cron, schedule.timezone, schedule.next_run_at, now
            )
            is_skipped = schedule.missed is Missed.SKIP and now - scheduled_for > _LATE
            options = dict(schedule.task)
            content = options.pop("content")
            task = None if is_skipped else self._tasks.new_task(content, None, Options(**options))
        except Exception as error:
            # An option of a later version, a zone that is not known here. It harms no other.
            log.error(
                "Not understood",
                action="schedule_not_understood",
                schedule=schedule.name,
                error=type(error).__name__,
            )
            return None
        return Tick(schedule, scheduled_for, next_run_at, task)
