-- What operators do with queues, and see of them. What a queue does to its tasks is in tasks.sql: publish_due_tasks,
-- find_due_tasks, claim_tasks.

-- put_queue --
-- Makes a queue, or changes its limit. One row: whether it is new.
INSERT INTO queue (name, concurrency) VALUES (%(name)s, %(concurrency)s::int)
ON CONFLICT (name) DO UPDATE SET concurrency = excluded.concurrency
RETURNING xmax = 0;

-- pause_queue --
-- No row when there is no such queue.
UPDATE queue SET is_paused = %(is_paused)s WHERE name = %(name)s RETURNING name;

-- find_queues --
-- No change: so many queues in the order of their names, after one, or the one of that name alone.
WITH total AS (
    SELECT queue, status, sum(tasks) AS tasks FROM task_tally WHERE queue <> '' GROUP BY queue, status
)
SELECT
    name, concurrency, is_paused,
    coalesce((SELECT tasks FROM total WHERE queue = name AND status = 'pending'), 0)::bigint,
    coalesce((SELECT tasks FROM total WHERE queue = name AND status = 'processing'), 0)::bigint,
    coalesce((SELECT max(oldest_seconds) FROM due_lane WHERE queue = name), 0),
    (greatest(0, (SELECT coalesce(sum(tasks), 0) FROM total
        WHERE queue = name AND status IN ('completed', 'failed', 'canceled')) - earlier_ended)
        / greatest(1, extract(epoch FROM statement_timestamp() - earlier_at)))::float8
FROM queue
WHERE CASE WHEN %(only)s::text IS NULL THEN name > %(after)s ELSE name = %(only)s END
ORDER BY name LIMIT %(limit)s;

-- sample_queues --
-- For the rate: remembers how many tasks of each queue have ended, where the last such moment is long enough ago.
UPDATE queue SET
    earlier_at = sampled_at, earlier_ended = sampled_ended, sampled_at = statement_timestamp(),
    sampled_ended = (SELECT coalesce(sum(tasks), 0) FROM task_tally
        WHERE task_tally.queue = name AND status IN ('completed', 'failed', 'canceled'))
WHERE name IN (
    SELECT name FROM queue WHERE name > '' AND sampled_at <= statement_timestamp() - interval '45 s'
    ORDER BY name FOR UPDATE SKIP LOCKED
);
