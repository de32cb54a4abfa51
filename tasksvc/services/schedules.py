"""What the service can do with a schedule. Its tasks are like all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import orjson
import structlog

from tasksvc.domain import cron
from tasksvc.domain.errors import DataRejected, ScheduleNotFound, TooManySchedules
from tasksvc.domain.schedule import DueSchedules, Missed, Schedule, ScheduleOrder, Tick
from tasksvc.domain.task import Options
from tasksvc.metrics import Metrics
from tasksvc.services.sharing import Line
from tasksvc.services.tasks import TaskService
from tasksvc.slices import Slices
from tasksvc.store.schedule_store import ScheduleStore

log = structlog.get_logger(__name__)

MAX_SCHEDULES = 1000
"""All of them may be due at the same moment."""

_STEP = 50
"""Schedules that are read, and go on, in one statement."""

_LINE_SECONDS = 5.0
"""The longest wait in the line."""

_LATE = timedelta(minutes=1)
"""What is later was missed."""


class ScheduleService:
    """put, get, find, delete for people and programs; run_due for the duty.

    Every method raises Unavailable when PostgreSQL is away, and what its docstring names.
    """

    def __init__(
        self,
        store: ScheduleStore,
        tasks: TaskService,
        metrics: Metrics,
        *,
        wake_scheduler: Callable[[], object],
        max_waiting: int,
    ) -> None:
        """`wake_scheduler` is called when a schedule may be due earlier than it was."""
        self._wake_scheduler = wake_scheduler
        self._store = store
        self._line = Line(max_waiting, _LINE_SECONDS)
        self._tasks = tasks
        self._runs = metrics.schedule_runs

    async def put(self, name: str, order: ScheduleOrder) -> tuple[Schedule, bool]:
        """The schedule, and whether it is new.

        Raises UnknownKind, InvalidCron, and TooManySchedules.
        """
        if order.kind is not None:
            await self._tasks.check_kind(order.kind)
        put = await self._line.run(lambda: self._put(name, order))
        if put is None:
            raise TooManySchedules
        self._wake_scheduler()
        return put

    async def get(self, name: str) -> Schedule:
        """Raises ScheduleNotFound."""
        found = await self._line.run(lambda: self._store.get_schedules(name))
        if not found:
            raise ScheduleNotFound
        return found[0]

    async def find(self, after: str, limit: int) -> list[Schedule]:
        """Those after a name, in the order of their names."""
        return await self._line.run(lambda: self._store.find_schedules(after, limit))

    async def delete(self, name: str) -> None:
        """The tasks that it has made stay. Raises ScheduleNotFound."""
        if not await self._line.run(lambda: self._store.delete_schedule(name)):
            raise ScheduleNotFound

    async def run_due(self) -> tuple[int, float | None]:
        """Makes the tasks of the schedules that are due: how many of these went on, and the seconds
        until the next is due (None: never)."""
        count, after = 0, ""
        while True:
            due = await self._store.find_due_schedules(after, _STEP)
            if due is None:
                return count, None
            count += await self._go_on(due)
            if len(due.schedules) < _STEP:
                return count, due.next_seconds
            # Not the first of the rest: what can't go on would be among them for ever.
            after = due.schedules[-1].name

    async def _put(self, name: str, order: ScheduleOrder) -> tuple[Schedule, bool] | None:
        next_run_at = None
        if not order.is_paused:
            now = await self._store.read_clock()
            next_run_at = cron.following(order.cron, order.timezone, now)
        return await self._store.put_schedule(name, order, next_run_at, MAX_SCHEDULES)

    async def _go_on(self, due: DueSchedules) -> int:
        """How many did."""
        slices, ticks = Slices(), []
        for schedule in due.schedules:
            if (tick := self._tick(schedule, due.now)) is not None:
                ticks.append(tick)
            await slices.rest()
        went_on = await self._run(ticks) if ticks else []
        made = {id for _, id in went_on if id is not None}
        self._runs["made"].add(len(made))
        self._runs["skipped"].add(len(went_on) - len(made))
        self._tasks.publish_soon(
            tick.task for tick in ticks if tick.task is not None and tick.task.id in made
        )
        return len(went_on)

    async def _run(self, ticks: Sequence[Tick]) -> list[tuple[str, str | None]]:
        try:
            return await self._store.run_schedules(ticks)
        except DataRejected:
            # One bad schedule must not stop the others: halve until it stands alone.
            if len(ticks) == 1:
                log.error(
                    "Schedule rejected by the database",
                    action="schedule_refused",
                    schedule=ticks[0].schedule.name,
                )
                return []
            middle = len(ticks) // 2
            return [*await self._run(ticks[:middle]), *await self._run(ticks[middle:])]

    def _tick(self, schedule: Schedule, now: datetime) -> Tick | None:
        """Returns None when this process can't evaluate the schedule; another one may."""
        assert schedule.next_run_at is not None
        try:
            scheduled_for, next_run_at = cron.around(
                schedule.cron, schedule.timezone, schedule.next_run_at, now
            )
            is_skipped = schedule.missed is Missed.SKIP and now - scheduled_for > _LATE
            options = orjson.loads(schedule.task)
            content = options.pop("content")
            task = None if is_skipped else self._tasks.new_task(content, None, Options(**options))
        except Exception as error:
            # An option of a later version, a zone that is not known here. It harms no other.
            log.error(
                "Schedule could not be evaluated",
                action="schedule_not_understood",
                schedule=schedule.name,
                error=type(error).__name__,
            )
            return None
        return Tick(schedule, scheduled_for, next_run_at, task)
