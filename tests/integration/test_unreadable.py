"""A row that can't be read fails the requests for it, and no others."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from tasksvc.domain.errors import TaskIsFinal, Unreadable
from tasksvc.domain.task import Filter, Status, Task
from tests.harness import query
from tests.integration.conftest import Worker

# A number that Python refuses to read.
DAMAGE = """
UPDATE task SET error = ('{"n": ' || repeat('9', 5000) || '}')::jsonb WHERE id = ANY(%s::uuid[])
"""


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("30001-01-01", datetime.max.replace(tzinfo=UTC)),
        ("infinity", datetime.max.replace(tzinfo=UTC)),
        ("9999-12-31 23:00-08", datetime.max.replace(tzinfo=UTC)),
    ],
)
async def test_time_beyond_pythons_is_the_last_one(
    worker: Worker, database_url: str, time: str, shown: datetime
) -> None:
    task = await worker.create()
    other = await worker.create()
    query(database_url, "UPDATE task SET due_at = %s WHERE id = %s", time, task.id)

    assert (await worker.tasks.get(task.id)).run_at == shown
    page = await worker.tasks.find(Filter(), None, 10)
    assert [each.id for each in page.tasks] == [other.id, task.id]


async def test_time_before_pythons_is_the_first_one(worker: Worker, database_url: str) -> None:
    task = await worker.create()
    query(database_url, "UPDATE task SET created_at = '0044-03-15 BC' WHERE id = %s", task.id)

    assert (await worker.tasks.get(task.id)).created_at == datetime.min.replace(tzinfo=UTC)


async def test_readers_of_others_never_notice(worker: Worker, database_url: str) -> None:
    ids = [(await worker.create()).id for _ in range(10)]
    bad = {ids[2], ids[3], ids[9]}
    query(database_url, DAMAGE, list(bad))
    for _ in range(3):
        found = await asyncio.gather(*map(worker.tasks.get, ids), return_exceptions=True)

        assert [type(each) is Unreadable for each in found] == [id in bad for id in ids]


async def test_page_has_all_others_and_is_full(worker: Worker, database_url: str) -> None:
    ids = [(await worker.create()).id for _ in range(10)]
    query(database_url, DAMAGE, [ids[9], ids[7], ids[0]])
    page = await worker.tasks.find(Filter(), None, 4)
    rest = await worker.tasks.find(Filter(), page.next_before, 4)

    assert [task.id for task in page.tasks] == [ids[8], ids[6], ids[5], ids[4]]
    assert [task.id for task in rest.tasks] == [ids[3], ids[2], ids[1]]
    assert rest.next_before is None


async def test_unreadable_task_is_canceled_all_the_same(worker: Worker, database_url: str) -> None:
    ids = [(await worker.create()).id for _ in range(4)]
    query(database_url, DAMAGE, [ids[1]])
    found = await asyncio.gather(*map(worker.tasks.cancel, ids), return_exceptions=True)

    assert [type(each) for each in found] == [Task, Unreadable, Task, Task]
    assert query(database_url, "SELECT DISTINCT status FROM task") == [(Status.CANCELED,)]
    for id in (ids[0], ids[2]):
        with pytest.raises(TaskIsFinal):
            await worker.tasks.cancel(id)


# As a damaged page would be: it can't be claimed.
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'invalid page' USING ERRCODE = 'data_corrupted';
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON task FOR EACH ROW
WHEN (NEW.content = 'bad' AND NEW.status = 'processing') EXECUTE FUNCTION refuse();
"""


async def test_claim_that_cannot_be_read_fails_its_task_and_no_other(
    worker: Worker, database_url: str
) -> None:
    query(database_url, REFUSE)
    contents = ["a", "bad", "b", "bad", "c"]
    ids = [(await worker.create(content)).id for content in contents]
    claims = await worker.service.claim(ids)

    assert [claim.content for claim in claims] == ["a", "b", "c"]
    assert await worker.service.claim(ids) == []
    bad = await worker.tasks.get(ids[1])
    assert bad.status is Status.FAILED
    assert bad.error == {
        "type": "Unreadable",
        "message": "PostgreSQL can't read it.",
        "attempt": 1,
    }
    assert query(database_url, "SELECT DISTINCT failures FROM task ORDER BY 1") == [(0,), (1,)]
