-- What: what waits and what lives is found by its lane first, and then by its queue; what has a queue, also by its time alone.
-- Why:  a look for what is due, for the lanes and for the oldest task went through the names of all queues. It looks at the
--       first tasks in the order of their times now, and at the queues one by one only if those of a queue that may not start
--       are in its way.
-- Safe while running? Writes wait while the indexes are built: seconds, with millions of tasks that are not final. A process
-- of before goes on beside it.

DROP INDEX task_live;
CREATE INDEX task_live ON task (kind, priority, queue, due_at) WHERE finished_at IS NULL;

DROP INDEX task_unpublished;
CREATE INDEX task_unpublished
ON task (kind, priority, queue, (CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL;

CREATE INDEX task_live_queued
ON task (kind, priority, (CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END IS NOT NULL;

CREATE INDEX task_unpublished_queued
ON task (kind, priority, (CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL;

-- For measure.
CREATE INDEX queue_paused ON queue (name) WHERE is_paused;

-- The lanes of all tasks that are not final: a step in the index for each, however many tasks and queues there are.
CREATE VIEW live_lane AS
WITH RECURSIVE lane AS (
    (SELECT kind, priority FROM task WHERE finished_at IS NULL ORDER BY kind, priority LIMIT 1)
    UNION ALL
    SELECT next.kind, next.priority FROM lane, LATERAL (
        SELECT kind, priority FROM task WHERE finished_at IS NULL AND (kind, priority) > (lane.kind, lane.priority)
        ORDER BY kind, priority LIMIT 1
    ) AS next
)
SELECT kind, priority FROM lane;

-- For processes of before: as it was, in the order of the new index.
CREATE OR REPLACE VIEW task_lane AS
WITH RECURSIVE lane AS (
    (SELECT queue, kind, priority FROM task WHERE finished_at IS NULL ORDER BY kind, priority, queue LIMIT 1)
    UNION ALL
    SELECT next.queue, next.kind, next.priority FROM lane, LATERAL (
        SELECT queue, kind, priority FROM task
        WHERE finished_at IS NULL AND (kind, priority, queue) > (lane.kind, lane.priority, lane.queue)
        ORDER BY kind, priority, queue LIMIT 1
    ) AS next
)
SELECT queue, kind, priority FROM lane;

-- How many more tasks of a queue may start; NULL: any number. lock_queue is for who starts them.
CREATE FUNCTION queue_room(wanted text) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    found queue;
BEGIN
    SELECT * INTO found FROM queue WHERE name = wanted;
    IF found.is_paused THEN
        RETURN 0;
    ELSIF found.concurrency IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN greatest(0, found.concurrency - (
        SELECT coalesce(sum(tasks), 0) FROM task_tally
        WHERE task_tally.queue = wanted AND task_tally.queue <> '' AND status = 'processing'
    ));
END $$;
