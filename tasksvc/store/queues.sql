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
-- No change: so many queues in the order of their names, after one, or the one of that name alone. The rate is over the time
-- since the moment before the last at which it was sampled; one that had come to rest was so two minutes ago at the latest.
WITH lane AS MATERIALIZED (
    SELECT kind, priority FROM live_lane
), named AS (
    SELECT * FROM queue
    WHERE CASE WHEN %(only)s::text IS NULL THEN name > %(after)s ELSE name = %(only)s END
    ORDER BY name LIMIT %(limit)s
)
SELECT
    name, concurrency, is_paused, pending, processing,
    CASE WHEN pending > 0 THEN coalesce((
        SELECT extract(epoch FROM statement_timestamp() - min(due.due_at))::float8 FROM lane, LATERAL (
            SELECT due_at FROM task
            WHERE finished_at IS NULL AND status = 'pending'
              AND task.queue = named.name AND task.kind = lane.kind AND task.priority = lane.priority
              AND due_at <= statement_timestamp()
            ORDER BY due_at LIMIT 1
        ) AS due
    ), 0) ELSE 0 END,
    (greatest(0, ended - earlier_ended) / greatest(1, least(
        extract(epoch FROM statement_timestamp() - earlier_at), CASE WHEN sampled_ended = earlier_ended THEN 120 END
    )))::float8
FROM named, LATERAL (
    SELECT
        coalesce(sum(tasks) FILTER (WHERE status = 'pending'), 0)::bigint AS pending,
        coalesce(sum(tasks) FILTER (WHERE status = 'processing'), 0)::bigint AS processing,
        coalesce(sum(tasks) FILTER (WHERE status IN ('completed', 'failed', 'canceled')), 0) AS ended
    FROM task_tally WHERE task_tally.queue = named.name AND task_tally.queue <> ''
) AS total
ORDER BY name;

-- delete_queue --
-- No row when there is no such queue, or when it has live tasks.
DELETE FROM queue
WHERE name = %(name)s AND (
    SELECT coalesce(sum(tasks), 0) FROM task_tally
    WHERE task_tally.queue = queue.name AND task_tally.queue <> '' AND status IN ('pending', 'processing')
) <= 0
RETURNING name;

-- forget_queues --
-- Of so many queues after one name those that have no limit, are not paused, have no tasks and are older than that. One row:
-- how many, and the last name of all (NULL: there are none).
WITH named AS MATERIALIZED (
    SELECT name FROM queue WHERE name > %(after)s ORDER BY name LIMIT %(limit)s
), forgotten AS (
    DELETE FROM queue
    WHERE name = ANY(ARRAY(SELECT name FROM named)) AND concurrency IS NULL AND NOT is_paused
      AND sampled_at < statement_timestamp() - make_interval(secs => %(seconds)s)
      AND NOT EXISTS (SELECT FROM task WHERE CASE WHEN task.queue <> '' THEN task.queue END = queue.name)
    RETURNING name
)
SELECT (SELECT count(*) FROM forgotten), (SELECT max(name) FROM named);

-- sample_queues --
-- For the rate: remembers how many tasks of each queue have ended, where the last such moment is long enough ago. One that
-- has come to rest is left alone.
WITH total AS (
    SELECT queue, sum(tasks) AS ended FROM task_tally
    WHERE queue <> '' AND status IN ('completed', 'failed', 'canceled') GROUP BY queue
), due AS (
    SELECT name, ended FROM total JOIN queue ON name = total.queue
    WHERE sampled_at <= statement_timestamp() - interval '45 s'
      AND (sampled_ended <> ended OR earlier_ended <> sampled_ended)
    ORDER BY name FOR UPDATE OF queue SKIP LOCKED
)
UPDATE queue SET
    earlier_at = sampled_at, earlier_ended = sampled_ended, sampled_at = statement_timestamp(), sampled_ended = due.ended
FROM due WHERE queue.name = due.name;
