-- What: which of the waiting tasks come first. Each kind and priority is a lane of its own, in the stream and in the indexes.
-- Why:  docs/architecture.md, "Lanes".
-- Safe while running? Writes wait while the two indexes are built: seconds, with millions of tasks that are not final. A
-- process of before goes on beside it, and treats all tasks as normal.

CREATE TYPE task_priority AS ENUM ('high', 'normal', 'low');    -- in this order

ALTER TABLE task
    ADD COLUMN priority task_priority NOT NULL DEFAULT 'normal',
    ALTER COLUMN kind TYPE text COLLATE "C";                    -- compared by its bytes; no rewrite

-- As before, neither has a column that a claim changes.
DROP INDEX task_live;
DROP INDEX task_unpublished;
CREATE INDEX task_live ON task (kind, priority, due_at) WHERE finished_at IS NULL;
CREATE INDEX task_unpublished ON task (kind, priority, due_at) WHERE published_at IS NULL AND finished_at IS NULL;

-- The lanes of all tasks that are not final: a step in the index for each, however many tasks there are.
CREATE VIEW task_lane AS
WITH RECURSIVE lane AS (
    (SELECT kind, priority FROM task WHERE finished_at IS NULL ORDER BY kind, priority LIMIT 1)
    UNION ALL
    SELECT next.kind, next.priority FROM lane, LATERAL (
        SELECT kind, priority FROM task WHERE finished_at IS NULL AND (kind, priority) > (lane.kind, lane.priority)
        ORDER BY kind, priority LIMIT 1
    ) AS next
)
SELECT kind, priority FROM lane;
