-- What: when a task was canceled; and the tasks that failed or were canceled, those of a kind and those of a queue, each in
--       the order of their ids.
-- Why:  docs/architecture.md, "Searches". What is rare is found at once behind millions of completed tasks. A task without a
--       kind and a queue that completes has no entry in any of them, and a claim writes nothing that they look at. All are
--       over expressions, as the indexes of 0012: no statistics can make another index look as good.
-- Safe while running? Writes wait while the table is read, for the indexes. A process of before goes on beside it; what it
-- cancels is not found by its status: end those within a day or so, or search by another filter.

ALTER TABLE task ADD COLUMN canceled_at timestamptz;

UPDATE task SET canceled_at = finished_at WHERE status = 'canceled';

CREATE INDEX task_unsuccessful ON task (
    (CASE WHEN canceled_at IS NOT NULL THEN 'canceled' WHEN finished_at IS NOT NULL AND error IS NOT NULL THEN 'failed' END),
    (CASE WHEN canceled_at IS NOT NULL OR finished_at IS NOT NULL AND error IS NOT NULL THEN id END)
)
WHERE CASE WHEN canceled_at IS NOT NULL OR finished_at IS NOT NULL AND error IS NOT NULL THEN id END IS NOT NULL;

CREATE INDEX task_of_kind ON task (
    (CASE WHEN kind <> 'default' THEN kind END), (CASE WHEN kind <> 'default' THEN id END)
)
WHERE CASE WHEN kind <> 'default' THEN id END IS NOT NULL;

CREATE INDEX task_in_queue ON task (
    (CASE WHEN queue <> '' THEN queue END), (CASE WHEN queue <> '' THEN id END)
)
WHERE CASE WHEN queue <> '' THEN id END IS NOT NULL;
