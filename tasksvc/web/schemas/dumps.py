"""Writes what goes out as JSON, in the shapes of `shapes.py`. Long lists are written in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import orjson

from tasksvc.domain.attempt import Attempt
from tasksvc.domain.queue import Queue
from tasksvc.domain.schedule import Schedule
from tasksvc.domain.task import BulkResult, Task
from tasksvc.slices import Slices
from tasksvc.web.schemas.moments import shown_moment
from tasksvc.web.schemas.shapes import (
    AttemptJson,
    Attempts,
    CanceledTasks,
    QueueJson,
    RetriedTasks,
    ScheduleJson,
    Tasks,
)

_Item = TypeVar("_Item")

_PIECE_BYTES = 65_536

_PAGE_BYTES = 8_388_608
"""Of tasks in one page; a page has one task at least."""

_OTHERS_BYTES = 16_384
"""The most that a task has in addition to its content and its result."""

_MOST_FOR_A_CHARACTER = 6
r"""In JSON: `\u0001`."""

_encode = msgspec.json.Encoder().encode

_MOMENTS = [
    name for name, type in get_type_hints(Task).items() if datetime in (type, *get_args(type))
]
_moments = attrgetter(*_MOMENTS)


def dump_task(task: Task) -> bytes:
    """A task as JSON: its five first keys always, and of the others those that it has."""
    for moment in _moments(task):
        # Nearly all moments are written as they are, and this is asked for every answer.
        if moment is not None and (moment.tzinfo is not UTC or not moment.microsecond):
            return _encode(_with_shown_moments(task))
    return _encode(task)


def _with_shown_moments(task: Task) -> Task:
    shown = {
        name: None if moment is None else shown_moment(moment)
        for name, moment in zip(_MOMENTS, _moments(task), strict=True)
    }
    return msgspec.structs.replace(task, **shown)


async def dump_tasks(tasks: Sequence[Task], next_cursor: str | None = None) -> list[bytes]:
    """Many tasks as JSON, in pieces."""
    return await dump_list(Tasks, tasks, dump_task, next_cursor=next_cursor)


async def fitting(tasks: Sequence[Task]) -> Sequence[Task]:
    """The first of the tasks: those that one page has room for."""
    if sum(map(_weight, tasks)) <= _PAGE_BYTES:
        return tasks
    slices = Slices()
    size = 0
    for number, task in enumerate(tasks):
        size += len(dump_task(task))
        if size > _PAGE_BYTES and number:
            return tasks[:number]
        await slices.rest()
    return tasks


def _weight(task: Task) -> int:
    """The most that the task can take."""
    result = 0 if task.result is None else memoryview(task.result).nbytes
    return _OTHERS_BYTES + len(task.content) * _MOST_FOR_A_CHARACTER + result


async def dump_attempts(attempts: Sequence[Attempt]) -> list[bytes]:
    """The runs of a task as JSON, in pieces: each run has its five first keys, and of the others
    those that it has."""
    return await dump_list(Attempts, attempts, _dump_attempt)


async def dump_list(
    shape: type[msgspec.Struct],
    items: Iterable[_Item],
    dump: Callable[[_Item], bytes],
    **others: str | None,
) -> list[bytes]:
    """Returns an object of the shape, whose first key has the list, and the others that are not
    None. In pieces: to put 25 MB together would hold the loop for too long."""
    slices = Slices()
    pieces: list[bytes] = []
    name = shape.__struct_fields__[0]
    piece = bytearray(b'{"%s":[' % name.encode())
    for number, item in enumerate(items):
        if number:
            piece += b","
        piece += dump(item)
        if len(piece) >= _PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
        await slices.rest()
    piece += b"]"
    for key, value in others.items():
        if value is not None:
            piece += b',"%s":%s' % (key.encode(), orjson.dumps(value))
    return [*pieces, bytes(piece + b"}")]


def dump_step(
    step: BulkResult, next_cursor: str | None, shape: type[CanceledTasks] | type[RetriedTasks]
) -> bytes:
    """Returns a step as JSON."""
    count = len(step.ids)
    return _encode(shape(step.matched, count, step.ids, next_cursor is not None, next_cursor))


def _dump_attempt(attempt: Attempt) -> bytes:
    return _encode(AttemptJson(**_shown(attempt._asdict())))


def dump_queue(queue: Queue) -> bytes:
    """Returns a queue as JSON."""
    left = queue.empty_seconds
    return _encode(
        QueueJson(
            queue.name,
            queue.concurrency,
            queue.is_paused,
            queue.pending,
            queue.processing,
            round(queue.oldest_seconds, 3),
            round(queue.rate, 3),
            None if left is None else round(left, 1),
        )
    )


def dump_schedule(schedule: Schedule) -> bytes:
    """Returns a schedule as JSON."""
    fields = _shown(schedule._asdict())
    fields["task"] = msgspec.Raw(schedule.task.encode())
    return _encode(ScheduleJson(**fields, is_paused=schedule.is_paused))


def _shown(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: shown_moment(value) if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
