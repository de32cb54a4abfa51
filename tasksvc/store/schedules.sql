-- Every query about schedules. What is said at the top of tasks.sql holds here too.

-- read_clock --
SELECT clock_timestamp();

-- put_schedule --
-- One row: the schedule as it is now, and whether it is new. No row when there is no room for another one. (Processes
-- that make schedules at the same moment may go past the limit by one each.)
-- One that goes on at the same moments keeps the next of them: it may be due this instant.
-- A first try whose answer was lost makes the second say that the schedule was there.
INSERT INTO schedule AS kept (name, cron, timezone, task, missed, next_run_at)
SELECT %(name)s::text, %(cron)s::text, %(timezone)s::text, %(task)s::json, %(missed)s::text, %(next_run_at)s::timestamptz
WHERE EXISTS (SELECT FROM schedule WHERE name = %(name)s::text) OR (SELECT count(*) FROM schedule) < %(limit)s
ON CONFLICT (name) DO UPDATE SET
    cron = excluded.cron, timezone = excluded.timezone, task = excluded.task, missed = excluded.missed,
    updated_at = clock_timestamp(),
    next_run_at = CASE
        WHEN (kept.cron, kept.timezone) = (excluded.cron, excluded.timezone) AND excluded.next_run_at IS NOT NULL
        THEN coalesce(kept.next_run_at, excluded.next_run_at) ELSE excluded.next_run_at END
RETURNING name, cron, timezone, task::text, missed, created_at, updated_at, next_run_at, last_run_at, last_task_id, xmax = 0;

-- find_schedules --
-- No change: so many of them, in the order of their names, after one.
SELECT name, cron, timezone, task::text, missed, created_at, updated_at, next_run_at, last_run_at, last_task_id
FROM schedule WHERE name > %(after)s::text ORDER BY name LIMIT %(limit)s;

-- get_schedules --
SELECT name, cron, timezone, task::text, missed, created_at, updated_at, next_run_at, last_run_at, last_task_id
FROM schedule WHERE name = %(name)s;

-- delete_schedule --
DELETE FROM schedule WHERE name = %(name)s RETURNING name;

-- find_due_schedules --
-- No change: so many of those that are due, in the order of their names, after one; and the next that will be; with each
-- the present moment.
(SELECT name, cron, timezone, task::text, missed, created_at, updated_at, next_run_at, last_run_at, last_task_id,
    statement_timestamp()
 FROM schedule WHERE next_run_at <= statement_timestamp() AND name > %(after)s::text ORDER BY name LIMIT %(limit)s)
UNION ALL
(SELECT name, cron, timezone, task::text, missed, created_at, updated_at, next_run_at, last_run_at, last_task_id,
    statement_timestamp()
 FROM schedule WHERE next_run_at > statement_timestamp() ORDER BY next_run_at LIMIT 1);

-- run_schedules --
-- (nothing) -> pending: a task for each schedule that is due still, and is as it was when it was read; and the schedule
-- goes on to its next moment. Both or neither are committed, and the moment that was read is left for good: whoever else
-- has read it, or runs this again, finds another one there, and makes nothing. What is locked is left to who has locked it.
-- One row for each schedule that went on, with the id of its task (NULL: none, as was asked for); and for each task that
-- was made by a first try whose answer was lost.
WITH tick AS (
    SELECT * FROM json_to_recordset(%(ticks)s::json) AS tick (
        name text, seen timestamptz, updated_at timestamptz, next_run_at timestamptz, scheduled_for timestamptz,
        id uuid, content text, max_attempts int, is_published bool, timeout_seconds float8, kind text,
        priority task_priority, queue text, unique_key text, retry_base_seconds float8, retry_max_seconds float8
    )
), due AS (
    SELECT tick.* FROM schedule JOIN tick USING (name)
    WHERE schedule.next_run_at = tick.seen AND schedule.updated_at IS NOT DISTINCT FROM tick.updated_at
      AND schedule.next_run_at <= statement_timestamp()
    ORDER BY schedule.name FOR UPDATE OF schedule SKIP LOCKED
), made AS (
    INSERT INTO task (
        id, content, max_attempts, published_at, timeout_seconds, kind, priority, queue, unique_key, retry_base_seconds,
        retry_max_seconds, schedule, scheduled_for
    )
    SELECT id, content, max_attempts, CASE WHEN is_published THEN clock_timestamp() END, timeout_seconds,
        coalesce(kind, 'default'), coalesce(priority, 'normal'), coalesce(queue, ''), unique_key, retry_base_seconds,
        retry_max_seconds, name, scheduled_for
    FROM due WHERE id IS NOT NULL ORDER BY unique_key, id
    ON CONFLICT DO NOTHING
    RETURNING id
), moved AS (
    UPDATE schedule SET
        next_run_at = due.next_run_at,
        last_run_at = CASE WHEN made.id IS NULL THEN schedule.last_run_at ELSE due.scheduled_for END,
        last_task_id = coalesce(made.id, schedule.last_task_id)
    FROM due LEFT JOIN made USING (id) WHERE schedule.name = due.name
)
SELECT due.name, made.id FROM due LEFT JOIN made USING (id)
UNION ALL
SELECT tick.name, task.id FROM tick JOIN task USING (id);
