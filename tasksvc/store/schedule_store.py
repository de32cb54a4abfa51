"""The schedules in PostgreSQL: one method, one named query."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from tasksvc.domain.schedule import DueSchedules, Missed, Schedule, ScheduleOrder, Tick
from tasksvc.store.database import Database
from tasksvc.store.documents import document
from tasksvc.store.store import Store

_SESSIONS = ("schedule", "tick")


class ScheduleStore(Store):
    """Every method raises StoreUnavailable when PostgreSQL is away or too slow."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "schedules.sql", _SESSIONS)

    async def read_clock(self) -> datetime:
        """PostgreSQL's."""
        ((now,),) = await self._run("schedule", "read_clock")
        moment: datetime = now
        return moment

    async def put_schedule(
        self, name: str, order: ScheduleOrder, next_run_at: datetime | None, limit: int
    ) -> tuple[Schedule, bool] | None:
        """The schedule as it is now, and whether it is new; None when there are `limit` already."""
        rows = await self._run(
            "schedule",
            "put_schedule",
            name=name,
            cron=order.cron,
            timezone=order.timezone,
            task=order.task,
            missed=order.missed,
            next_run_at=next_run_at,
            limit=limit,
        )
        if not rows:
            return None
        ((*columns, is_new),) = rows
        return _schedule(*columns), is_new

    async def find_schedules(self, after: str, limit: int) -> list[Schedule]:
        """Those after a name, in the order of their names."""
        rows = await self._run("schedule", "find_schedules", after=after, limit=limit)
        return [_schedule(*row) for row in rows]

    async def get_schedules(self, name: str) -> list[Schedule]:
        """The one of that name, if there is one."""
        return [_schedule(*row) for row in await self._run("schedule", "get_schedules", name=name)]

    async def delete_schedule(self, name: str) -> bool:
        """Whether it was there."""
        return bool(await self._run("schedule", "delete_schedule", name=name))

    async def find_due_schedules(self, after: str, limit: int) -> DueSchedules | None:
        """Those after a name, in the order of their names; None when no schedule will ever be
        due."""
        rows = await self._run("tick", "find_due_schedules", after=after, limit=limit)
        if not rows:
            return None
        now: datetime = rows[0][-1]
        due, seconds = [], None
        for *columns, _ in rows:
            schedule = _schedule(*columns)
            assert schedule.next_run_at is not None
            if schedule.next_run_at <= now:
                due.append(schedule)
            else:
                seconds = (schedule.next_run_at - now).total_seconds()
        return DueSchedules(due, now, seconds)

    async def run_schedules(self, ticks: Sequence[Tick]) -> list[tuple[str, str | None]]:
        """The names of the schedules that went on, each with the id of the task that was made.

        Raises DataRejected when one of the tasks does not fit the database; nothing is done then.
        """
        rows = await self._run(
            "tick",
            "run_schedules",
            ticks=orjson.dumps([_document(tick) for tick in ticks]).decode(),
        )
        return [(name, id) for name, id in rows]


def _schedule(
    name: str, cron: str, timezone: str, task: str, missed: str, *others: Any
) -> Schedule:
    return Schedule(name, cron, timezone, task, Missed(missed), *others)


def _document(tick: Tick) -> dict[str, Any]:
    """With the columns that it has."""
    return {
        **({} if tick.task is None else document(tick.task)),
        "name": tick.schedule.name,
        "seen": tick.schedule.next_run_at,
        "updated_at": tick.schedule.updated_at,
        "next_run_at": tick.next_run_at,
        "scheduled_for": tick.scheduled_for,
    }
