"""The database guards itself against every writer."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

import psycopg2
import pytest

from tasksvc.domain.task import FINAL, FOLLOWS, Status
from tasksvc.embedded import EmbeddedPostgres
from tests.conftest import database_named
from tests.harness import create_database, query

WORKER, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """One for all: each test looks only at the rows that it has made."""
    create_database(postgres.url, "guarded", template)
    yield database_named(postgres.url, "guarded")
    query(postgres.url, "DROP DATABASE guarded WITH (FORCE)")


def insert(url: str, status: Status, id: str | None = None) -> str:
    id = id or str(uuid.uuid4())
    query(
        url,
        """INSERT INTO task (id, status, worker_id, finished_at, attempt, failures, max_attempts,
            content) VALUES (%s, %s, %s, %s, 2, 1, 3, 'x')""",
        id,
        status,
        WORKER if status is Status.PROCESSING else None,
        "2026-01-01" if status in FINAL else None,
    )
    return id


def is_allowed(url: str, id: str, change: str, *parameters: object) -> bool:
    try:
        query(url, f"UPDATE task SET {change} WHERE id = %s", *parameters, id)  # noqa: S608
    except psycopg2.errors.CheckViolation:
        return False
    return True


def test_one_status_follows_another_only_as_the_domain_says(database_url: str) -> None:
    allowed = set()
    for before, after in itertools.product(Status, Status):
        if is_allowed(
            database_url,
            insert(database_url, before),
            "status = %s, worker_id = %s, finished_at = %s, attempt = attempt + %s",
            after,
            WORKER if after is Status.PROCESSING else None,
            "2026-01-02" if after in FINAL else None,
            int(after is Status.PROCESSING),
        ):
            allowed.add((before, after))

    # A task that waits may go on waiting: it is published, or put off.
    assert allowed == {
        (Status.PENDING, Status.PENDING),
        *((before, after) for before in Status for after in FOLLOWS[before]),
    }


@pytest.mark.parametrize(
    "change",
    [
        "finished_at = clock_timestamp()",
        "error = '{}'",
        "attempt = attempt + 1",
        "failures = failures - 1",
        "content = 'other'",
        "status = 'pending', finished_at = NULL",
        "id = gen_random_uuid()",
    ],
)
def test_final_task_stays_as_it_is(database_url: str, change: str) -> None:
    for status in FINAL:
        assert not is_allowed(database_url, insert(database_url, status), change)


def test_final_task_may_change_in_columns_that_are_not_shown(database_url: str) -> None:
    """A migration may rewrite a column of bookkeeping."""
    for status in FINAL:
        id = insert(database_url, status)
        assert is_allowed(database_url, id, "published_at = NULL, traceparent = 'x'")


@pytest.mark.parametrize(
    ("change", "is_right"),
    [
        (f"worker_id = '{OTHER}'", False),
        (f"worker_id = '{OTHER}', attempt = attempt + 1", False),
        ("attempt = attempt + 1", False),
        ("updated_at = clock_timestamp()", True),
        (f"worker_id = '{WORKER}'", True),
    ],
)
def test_held_task_stays_with_its_holder(database_url: str, change: str, is_right: bool) -> None:
    id = insert(database_url, Status.PROCESSING)

    assert is_allowed(database_url, id, change) is is_right


@pytest.mark.parametrize("status", [Status.PENDING, Status.PROCESSING])
def test_attempt_never_goes_back_and_id_never_changes(database_url: str, status: Status) -> None:
    id = insert(database_url, status)

    assert not is_allowed(database_url, id, "attempt = attempt - 1")
    assert not is_allowed(database_url, id, "id = gen_random_uuid()")


def test_claim_takes_a_new_attempt(database_url: str) -> None:
    id = insert(database_url, Status.PENDING)
    change = f"status = 'processing', worker_id = '{WORKER}', attempt = attempt + "

    assert not is_allowed(database_url, id, change + "0")
    assert is_allowed(database_url, id, change + "1")


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (Status.PENDING, f"worker_id = '{WORKER}'"),
        (Status.PROCESSING, "worker_id = NULL"),
        (Status.PROCESSING, "status = 'completed', worker_id = NULL"),
        (Status.PENDING, "finished_at = clock_timestamp()"),
        (Status.PENDING, "failures = attempt + 1"),
        (Status.PENDING, "failures = -1"),
        (Status.PENDING, "max_attempts = 0"),
    ],
)
def test_row_makes_sense(database_url: str, status: Status, change: str) -> None:
    assert not is_allowed(database_url, insert(database_url, status), change)


def test_refusal_tells_what_was_tried(database_url: str) -> None:
    id = insert(database_url, Status.CANCELED)
    with pytest.raises(psycopg2.errors.CheckViolation) as raised:
        query(database_url, "UPDATE task SET status = 'completed' WHERE id = %s", id)

    assert f"task {id}: canceled (attempt 2) -> completed (attempt 2)" in str(raised.value)
