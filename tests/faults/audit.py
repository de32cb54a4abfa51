"""An audit trail in the database: every change of a task, and every death of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from tests.harness import query

FINAL = frozenset({"completed", "failed", "canceled"})

_INSTALL = """
CREATE TABLE task_event (
    seq bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), id uuid NOT NULL,
    was text, status text NOT NULL, was_attempt integer, attempt integer NOT NULL,
    failures integer NOT NULL, max_attempts integer NOT NULL, was_due_at timestamptz,
    was_worker_id uuid, worker_id uuid, error_type text, error_attempt integer, queue text NOT NULL
);
CREATE TABLE worker_event (
    seq bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), id uuid NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE FUNCTION audit_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO task_event (id, status, attempt, failures, max_attempts, worker_id, queue)
        VALUES (NEW.id, NEW.status, NEW.attempt, NEW.failures, NEW.max_attempts, NEW.worker_id,
            NEW.queue);
    ELSIF NEW.status <> OLD.status OR NEW.attempt <> OLD.attempt THEN
        INSERT INTO task_event (id, was, status, was_attempt, attempt, failures, max_attempts,
            was_due_at, was_worker_id, worker_id, error_type, error_attempt, queue)
        VALUES (NEW.id, OLD.status, NEW.status, OLD.attempt, NEW.attempt, NEW.failures,
            NEW.max_attempts, OLD.due_at, OLD.worker_id, NEW.worker_id, NEW.error->>'type',
            (NEW.error->>'attempt')::integer, NEW.queue);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON task FOR EACH ROW EXECUTE FUNCTION audit_task();
CREATE FUNCTION audit_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO worker_event (id, expires_at) VALUES (NEW.id, OLD.expires_at);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON worker FOR EACH ROW
WHEN (OLD.lapsed_at IS NULL AND NEW.lapsed_at IS NOT NULL) EXECUTE FUNCTION audit_worker();
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a task, in the order of the database. Times are seconds since the epoch."""

    at: float
    id: str
    was: str | None
    status: str
    was_attempt: int | None
    attempt: int
    failures: int
    max_attempts: int
    was_due_at: float | None
    was_worker_id: str | None
    worker_id: str | None
    error_type: str | None
    error_attempt: int | None
    queue: str


@dataclass(frozen=True, slots=True)
class Lapse:
    """A worker was declared dead."""

    at: float
    id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it stands in the table at the end."""

    id: str
    content: str
    status: str
    attempt: int
    failures: int
    max_attempts: int
    error_type: str | None
    unique_key: str | None
    retry_of: str | None
    schedule: str | None
    scheduled_for: str | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """A run in the history of a task."""

    id: str
    attempt: int
    outcome: str


def is_rescue(event: Event) -> bool:
    """The task was taken from a worker that was declared dead."""
    went_back = event.was == "processing" and event.status in ("pending", "failed")
    is_of_this_run = event.error_attempt == event.was_attempt
    return went_back and is_of_this_run and event.error_type == "WorkerLost"


def install(url: str) -> None:
    query(url, _INSTALL)


def events(url: str) -> list[Event]:
    rows = query(
        url,
        """SELECT extract(epoch FROM at)::float8, id::text, was, status, was_attempt, attempt,
            failures, max_attempts, extract(epoch FROM was_due_at)::float8, was_worker_id::text,
            worker_id::text, error_type, error_attempt, queue FROM task_event ORDER BY seq""",
    )
    return [Event(*row) for row in rows]


def lapses(url: str) -> list[Lapse]:
    rows = query(
        url,
        """SELECT extract(epoch FROM at)::float8, id::text, extract(epoch FROM expires_at)::float8
            FROM worker_event ORDER BY seq""",
    )
    return [Lapse(*row) for row in rows]


def rows(url: str) -> list[TaskRow]:
    found = query(
        url,
        """SELECT id::text, content, status::text, attempt, failures, max_attempts, error->>'type',
            unique_key, retry_of::text, schedule, scheduled_for::text FROM task ORDER BY id""",
    )
    return [TaskRow(*row) for row in found]


def attempts(url: str) -> list[AttemptRow]:
    found = query(url, "SELECT task_id::text, attempt, outcome::text FROM attempt")
    return [AttemptRow(*row) for row in found]


def limits(url: str) -> dict[str, int]:
    """Of the queues that have one."""
    return dict(query(url, "SELECT name, concurrency FROM queue WHERE concurrency IS NOT NULL"))


def overdue(url: str) -> dict[str, float]:
    """Of each schedule, for how many seconds its next moment has been due; below 0: it is not."""
    statement = "extract(epoch FROM clock_timestamp() - next_run_at)::float8"
    return dict(query(url, f"SELECT name, {statement} FROM schedule"))  # noqa: S608
