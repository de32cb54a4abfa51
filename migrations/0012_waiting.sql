-- What: the indexes of what is not published, and of what may expire, are over expressions.
-- Why:  each of them is a part of task_live, which would do for its query too, and costs as much while the table is small: a
--       connection that planned then would go through all that waits for ever after. No other index has these expressions.
-- Safe while running? Writes wait while the table is read. A process of before finds these tasks the slow way.

DROP INDEX task_unpublished;
DROP INDEX task_expiring;

CREATE INDEX task_unpublished
ON task (queue, kind, priority, (CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL;

CREATE INDEX task_expiring
ON task (kind, priority, (CASE WHEN finished_at IS NULL THEN expires_at END))
WHERE CASE WHEN finished_at IS NULL THEN expires_at END IS NOT NULL;
