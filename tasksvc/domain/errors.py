"""The errors that the services raise, one family.

::

    TaskServiceError
    ├── TaskNotFound          no task has this id
    ├── TaskIsFinal           it is completed, failed or canceled already
    ├── UnknownKind           no process serves tasks of this kind
    ├── IdempotencyKeyConflict  this key was used for another request
    ├── TaskIsNotFinal        it is pending or processing still
    ├── QueueNotFound         no queue has this name
    ├── QueueInUse            it has live tasks
    ├── ScheduleNotFound      no schedule has this name
    ├── TooManySchedules      their limit is reached
    ├── InvalidCron           this is no cron expression, or it matches no date
    ├── UniqueKeyTaken        another live task has its unique key
    ├── DataRejected          PostgreSQL rejects this value
    ├── Unreadable            a stored value can't be read
    ├── MigrationFailed       PostgreSQL rejects this migration
    └── Unavailable           not now; try again in a moment
        ├── StoreUnavailable      PostgreSQL is away, or too slow
        │   ├── StoreRefuses          PostgreSQL can't be used as it is set up
        │   └── StatementRefused      PostgreSQL rejects this statement
        ├── StreamUnavailable     Redis is away
        ├── Overloaded            the waiting line is full
        └── LeaseLost             this worker was declared dead
"""

from __future__ import annotations

from tasksvc.domain.task import Status


class TaskServiceError(Exception):
    """The root of the family. The docstring of each is its message."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class TaskNotFound(TaskServiceError):
    """There is no task with this id."""


class TaskIsFinal(TaskServiceError):
    """The task is final already."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task is {status} already.")
        self.status = status


class UnknownKind(TaskServiceError):
    """No process serves tasks of this kind, or has in the last 30 days."""


class IdempotencyKeyConflict(TaskServiceError):
    """This Idempotency-Key was used for another request."""


class TaskIsNotFinal(TaskServiceError):
    """The task is not final yet."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"The task is {status} still.")
        self.status = status


class QueueNotFound(TaskServiceError):
    """There is no queue with this name."""


class QueueInUse(TaskServiceError):
    """The queue has tasks that are pending or processing."""


class ScheduleNotFound(TaskServiceError):
    """There is no schedule with this name."""


class TooManySchedules(TaskServiceError):
    """There are too many schedules already."""


class InvalidCron(TaskServiceError):
    """Must be a five-field cron expression that matches at least one date."""


class UniqueKeyTaken(TaskServiceError):
    """Another task with its unique_key is live."""


class DataRejected(TaskServiceError):
    """The database does not take this value."""


class DuplicateKey(DataRejected):
    """The database has a row with this key."""


class Unreadable(TaskServiceError):
    """What the database has can't be read."""


class MigrationFailed(TaskServiceError):
    """A migration can't be applied."""

    def __init__(self, name: str, reason: str | None) -> None:
        super().__init__(f"{name} can't be applied: {reason or 'PostgreSQL does not take it'}.")


class Unavailable(TaskServiceError):
    """The service can't do this now; try again in a moment."""


class StoreUnavailable(Unavailable):
    """PostgreSQL does not answer."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__()
        self.reason = reason
        """Why, in one line: for operators, and so not part of the message."""


class StoreRefuses(StoreUnavailable):
    """PostgreSQL can't be used as it is set up."""


class StatementRefused(StoreUnavailable):
    """PostgreSQL can't run this statement."""


class StreamUnavailable(Unavailable):
    """Redis does not answer."""


class Overloaded(Unavailable):
    """The waiting line is full."""


class LeaseLost(Unavailable):
    """This worker was declared dead; it has to register again."""
