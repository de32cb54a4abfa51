"""Pages of tasks, behind thousands of others."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tasksvc.domain.task import LIVE, Filter, Status
from tasksvc.services import search as search_module
from tasksvc.services.search import Search
from tasksvc.store.database import Database
from tasksvc.store.task_store import TaskStore
from tests.harness import query

# 3,000 tasks, one a second: all kinds of them, the rarer the older.
FILL = """
INSERT INTO task (id, created_at, due_at, finished_at, canceled_at, error, retried_as, status, kind,
    queue, worker_id, attempt, max_attempts, content)
SELECT
    (lpad(to_hex((1000 * extract(epoch FROM at))::bigint), 12, '0') || repeat('7', 20))::uuid,
    at, at, CASE WHEN status NOT IN ('pending', 'processing') THEN at END,
    CASE WHEN status = 'canceled' THEN at END,
    CASE WHEN status = 'failed' THEN '{}'::jsonb END,
    CASE WHEN n % 3 = 0 AND status = 'failed' THEN gen_random_uuid() END, status::task_status,
    CASE WHEN n % 7 = 0 AND n > 2000 THEN 'odd' ELSE 'default' END,
    CASE WHEN n % 5 = 0 AND n > 2500 THEN 'slow' ELSE '' END,
    CASE WHEN status = 'processing' THEN gen_random_uuid() END, 1, 3, 'x'
FROM generate_series(1, 3000) AS n, LATERAL (
    SELECT timestamptz '2026-01-02' - n * interval '1 s' AS at, CASE
        WHEN n % 100 = 0 AND n > 1500 THEN 'failed'
        WHEN n % 50 = 1 AND n > 1500 THEN 'canceled'
        WHEN n % 10 = 3 AND n > 2800 THEN 'pending'
        WHEN n % 40 = 7 AND n > 2900 THEN 'processing'
        ELSE 'completed' END AS status
) AS task
"""

START = datetime(2026, 1, 2, tzinfo=UTC)

FILTERS = [
    Filter(statuses, kind, queue, after, before, is_unretried)
    for statuses, kind, queue, (after, before), is_unretried in itertools.product(
        [(), (Status.COMPLETED,), (Status.FAILED,), (Status.CANCELED,), (Status.PROCESSING,), LIVE],
        [None, "default", "odd", "none"],
        [None, "slow", "none"],
        [
            (None, None),
            (START - timedelta(seconds=2950), START - timedelta(seconds=1700)),
            (START, None),
        ],
        [False, True],
    )
]


@pytest.fixture
async def search(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Search]:
    monkeypatch.setattr(search_module, "_FIRST_WINDOW", 20)
    monkeypatch.setattr(search_module, "_LAST_WINDOW", 100)
    query(database_url, FILL)
    store = TaskStore(Database(database_url))
    yield Search(store, "search")
    await store.close()


async def test_pages_of_every_filter_are_full_and_hold_what_passes_it(
    search: Search, database_url: str
) -> None:
    rows = query(
        database_url,
        "SELECT id::text, status, kind, queue, created_at, retried_as FROM task ORDER BY id DESC",
    )
    for filter in FILTERS:
        expected = [
            id
            for id, status, kind, queue, created_at, retried_as in rows
            if (not filter.statuses or status in filter.statuses)
            and filter.kind in (None, kind)
            and filter.queue in (None, queue)
            and (filter.created_after is None or created_at > filter.created_after)
            and (filter.created_before is None or created_at < filter.created_before)
            and not (filter.is_unretried and retried_as)
        ]
        first, before = await search.find(filter, None, 4)
        rest = []
        if before is not None:
            assert len(first) == 4, filter
            rest, before = await search.find(filter, before, 1000)
        assert first + rest == expected[:1004], filter
        assert (before is None) == (len(expected) <= 1004), filter


async def test_page_ends_with_its_time(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one goes on where it ended."""
    monkeypatch.setattr(search_module, "_SECONDS", 0.0)
    old = START - timedelta(seconds=2990)
    filter = Filter((Status.COMPLETED, Status.FAILED), created_before=old)
    found, before = await search.find(filter, None, 5)
    pages = 1
    while before is not None:
        ids, before = await search.find(filter, before, 5)
        found += ids
        pages += 1

    assert len(found) == len(set(found)) == 9
    assert pages > 2
