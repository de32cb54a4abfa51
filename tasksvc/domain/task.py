"""What a task is, which statuses it has, and which status may follow which.

The types that are read from JSON or written as JSON are msgspec structs: they leave out fields
that are None, and keep the order of the fields.
https://jcristharif.com/msgspec/structs.html#omit-defaults
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from numbers import Real
from typing import Any, NamedTuple

import msgspec


class Status(StrEnum):
    """Where a task stands. The database knows the same words (`task_status`)."""

    PENDING = "pending"
    """Kept, and waiting: for its turn, or for the delay before its next attempt."""

    PROCESSING = "processing"
    """Held by one worker. A worker that dies gives it back through the rescuer."""

    COMPLETED = "completed"
    """Its handler returned. Final."""

    FAILED = "failed"
    """Its attempts are spent. Final."""

    CANCELED = "canceled"
    """A client stopped it, before or while it ran. Final."""


LIVE = (Status.PENDING, Status.PROCESSING)

FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED})
"""A task in one of these never changes again."""

FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.PROCESSING, Status.CANCELED, Status.FAILED}),
    Status.PROCESSING: frozenset({Status.PENDING, *FINAL}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
}
"""Which status may follow which. `migrations/` holds the same rule as a guard in the database."""


DEFAULT_KIND = "default"
"""The kind of a task whose client names no kind. The kind selects the handler."""


class Priority(StrEnum):
    """The order among waiting tasks. The database knows the same words, in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Lane(NamedTuple):
    """The tasks that wait in one line: the first of them is the first to start."""

    kind: str = DEFAULT_KIND
    priority: str = Priority.NORMAL


DEFAULT_LANE = Lane()


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as its clients see it: the first five always, of the others those that it has. Times
    are aware and in UTC."""

    id: str
    content: str
    status: Status
    created_at: datetime
    updated_at: datetime | None
    error: dict[str, Any] | None = None
    """Of the last attempt, if it failed."""
    kind: str | None = None
    """None is the default, and so it is below."""
    priority: str | None = None
    queue: str | None = None
    progress: dict[str, Any] | None = None
    """How far its last run has come: `{fraction, message}`."""
    result: msgspec.Raw | None = None
    """What its handler returned: the JSON itself."""
    run_at: datetime | None = None
    """When a pending task starts, or tries again; None when it may start now."""
    timeout_seconds: float | None = None
    expires_at: datetime | None = None
    retry_of: str | None = None
    retried_as: str | None = None
    schedule: str | None = None
    """The name of the schedule that made it."""
    scheduled_for: datetime | None = None
    """The moment of the schedule that the task is for."""
    unique_key: str | None = None


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """The options of a create; None is the default. New options go at the end, because fingerprints
    depend on the order."""

    kind: str | None = None
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    """How long one run of the handler may take."""
    delay_seconds: float | None = None
    run_at: datetime | None = None
    """The task does not start before. Aware. Excludes `delay_seconds`."""
    expires_at: datetime | None = None
    """The task does not start at this moment or later. Aware."""
    priority: Priority | None = None
    queue: str | None = None
    unique_key: str | None = None
    """No two live tasks have the same one."""
    retry_base_seconds: float | None = None
    retry_max_seconds: float | None = None

    @property
    def waits(self) -> bool:
        """Whether the task has to wait before it may start."""
        return bool(self.delay_seconds or self.run_at)

    @property
    def lane(self) -> Lane:
        return Lane(self.kind or DEFAULT_KIND, self.priority or Priority.NORMAL)


NO_OPTIONS = Options()


class NewTask(NamedTuple):
    """A task on its way into the store; its id is made before the first try to insert it."""

    id: str
    content: str
    max_attempts: int
    traceparent: str | None
    is_published: bool
    """The service publishes it at once. False leaves the publication to the relay."""
    options: Options = NO_OPTIONS
    key: str | None = None
    """The client's idempotency key: of all creates with it, the first makes a task."""
    fingerprint: str | None = None
    """What the key was used for, as hexadecimal digits."""

    def first_claim(self) -> Claim:
        """Returns the claim of a worker that holds the task from its creation on."""
        options = self.options
        return Claim(
            self.id,
            1,
            0,
            self.max_attempts,
            self.content,
            self.traceparent,
            0.0,
            options.timeout_seconds,
            options.kind or DEFAULT_KIND,
            options.priority or Priority.NORMAL,
            False,
            options.retry_base_seconds,
            options.retry_max_seconds,
        )


class Hold(NamedTuple):
    """Tasks that a worker holds from their creation on, if it lives."""

    worker_id: str
    ids: frozenset[str]
    epoch: int = 0
    """The worker's epoch: in a later one the hold is void."""


class Filter(NamedTuple):
    """Which tasks are meant; None is any."""

    statuses: tuple[Status, ...] = ()
    """One of these statuses; empty is any."""
    kind: str | None = None
    queue: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    is_unretried: bool = False
    """Only tasks that have not been retried."""


class Page(NamedTuple):
    """Some of the tasks, newest first."""

    tasks: list[Task]
    next_before: str | None
    """The cursor of the next page; None on the last page. Other pages may be short or empty too."""


class BulkResult(NamedTuple):
    """What was done to some of the tasks that pass a filter, newest first."""

    matched: int
    """How many of the examined tasks pass the filter."""
    ids: list[str]
    """The tasks that were changed."""
    next_before: str | None
    """The cursor to continue from; None when all tasks have been examined."""


class CreateResult(NamedTuple):
    """The result of a create."""

    task: Task
    is_replayed: bool = False
    """The task is that of an earlier create with the same key."""
    is_new: bool = True
    """False for a live task that had the unique key already."""


class IdempotencyRecord(NamedTuple):
    """A task that was created under a key."""

    key: str
    fingerprint: str
    task: Task
    is_new: bool = True
    """False for a task that was there already, with the unique key of the create."""


class Claim(NamedTuple):
    """A task that this process holds, from its becoming `processing` until it is finished."""

    id: str
    attempt: int
    """The fencing token: only the holder of the current attempt can finish the task."""
    failures: int
    max_attempts: int
    content: str
    traceparent: str | None
    waited_seconds: float
    """Seconds from due to claimed, by PostgreSQL's clock."""
    timeout_seconds: float | None = None
    kind: str = DEFAULT_KIND
    priority: str = Priority.NORMAL
    is_limited: bool = False
    """Its queue may have a limit: when the task ends, another one may start."""
    retry_base_seconds: float | None = None
    retry_max_seconds: float | None = None


MESSAGE_LENGTH = 500
"""Characters of a message about progress that are kept."""


def kept_fraction(fraction: Any) -> float:
    """Returns the number, limited to 0 to 1. Raises TypeError when it is no number, and ValueError
    for NaN."""
    if not isinstance(fraction, Real | Decimal):
        given = type(fraction).__name__
        raise TypeError(f"The fraction of a progress must be a number, not {given}.")
    if fraction != fraction:
        raise ValueError("The fraction of a progress must be a number, not NaN.")
    return float(min(1, max(0, fraction)))


def kept_message(message: str) -> str:
    """Returns the first MESSAGE_LENGTH characters, as text that the database can store. Raises what
    its `__str__` raises."""
    text = str.__getitem__(str(message), slice(MESSAGE_LENGTH))
    return text.replace("\0", "").encode("utf-8", "replace").decode()


class Progress(NamedTuple):
    """How far a run has come, with the attempt that says so."""

    id: str
    attempt: int
    fraction: float
    message: str

    @classmethod
    def of(cls, claim: Claim, fraction: float, message: str) -> Progress:
        """Returns the part of a report that is stored. Raises what `kept_fraction` and
        `kept_message` raise."""
        return cls(claim.id, claim.attempt, kept_fraction(fraction), kept_message(message))


@dataclass(frozen=True, slots=True)
class CanceledTask:
    """A task that has just become `canceled`, and the worker that was running it, if any."""

    task: Task
    worker_id: str | None
