-- What: what runs of a queue is read from the tally; queues are named, and keys looked up, at less cost.
-- Why:  a task of a queue called two functions for its insert, one for its claim and one for its end, each with a row to write
--       in a table or an index of its own; a key had three indexes. A statement does it for all of its tasks at once now.
-- Safe while running? Writes wait while two indexes are built anew, for which the table is read once. A process of before
-- goes on beside it: it can't tell the figures of queues, and is slow at unique keys.

-- Appended to by every statement, as before; read here for one queue. Tasks without a queue have no entry.
CREATE INDEX task_tally_queue ON task_tally (queue, status) WHERE queue <> '';

CREATE OR REPLACE FUNCTION tally_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        WITH counted AS (
            INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, count(*) FROM added GROUP BY queue, status
            RETURNING queue AS name
        )
        -- A queue is there from its first task on.
        INSERT INTO queue (name)
        SELECT DISTINCT name FROM counted
        WHERE name <> '' AND NOT EXISTS (SELECT FROM queue WHERE queue.name = counted.name)
        ORDER BY name
        ON CONFLICT DO NOTHING;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, -count(*) FROM removed GROUP BY queue, status;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO task_tally (queue, status, tasks)
        SELECT queue, status, sum(tasks) FROM (
            SELECT queue, status, 1 AS tasks FROM added UNION ALL SELECT queue, status, -1 FROM removed
        ) AS change GROUP BY queue, status HAVING sum(tasks) <> 0;
    ELSE
        TRUNCATE task_tally;  -- not DELETE: it would miss what a fold is just writing
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER task_queue_name ON task;
DROP FUNCTION name_queue();

-- How many more tasks of a queue may start; NULL: any number. If it has a limit, nobody else starts one of its tasks until
-- this transaction ends. A function sees what was committed while it waited for the lock; the statement around it does not.
DROP FUNCTION lock_queue(text);
CREATE FUNCTION lock_queue(wanted text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found queue;
    parts bigint;
    running bigint;
BEGIN
    SELECT * INTO found FROM queue WHERE name = wanted;
    IF found.concurrency IS NOT NULL THEN
        SELECT * INTO found FROM queue WHERE name = wanted FOR UPDATE;
    END IF;
    IF found.is_paused THEN
        RETURN 0;
    ELSIF found.concurrency IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT count(*), coalesce(sum(tasks), 0) INTO parts, running FROM task_tally
    WHERE queue = wanted AND queue <> '' AND status = 'processing';
    IF parts > 100 THEN  -- every claim would read them again; the janitor comes once in a while
        WITH folded AS (
            DELETE FROM task_tally WHERE ctid IN (
                SELECT ctid FROM task_tally
                WHERE queue = wanted AND queue <> '' AND status = 'processing' FOR UPDATE SKIP LOCKED
            ) RETURNING tasks
        )
        INSERT INTO task_tally (queue, status, tasks) SELECT wanted, 'processing', sum(tasks) FROM folded HAVING count(*) > 0;
    END IF;
    RETURN greatest(0, found.concurrency - running);
END $$;

-- The queues whose tasks may start, each with how many more of them; NULL: any number.
CREATE OR REPLACE VIEW open_queue AS
SELECT '' AS name, NULL::bigint AS room
UNION ALL
SELECT name, CASE WHEN concurrency IS NOT NULL THEN
    greatest(0, concurrency - (
        SELECT coalesce(sum(tasks), 0) FROM task_tally
        WHERE task_tally.queue = name AND task_tally.queue <> '' AND status = 'processing'
    ))::bigint
END
FROM queue WHERE NOT is_paused AND name > '';  -- by the index, as every statement finds its rows

DROP TRIGGER task_queue_run ON task;
DROP FUNCTION note_queue_run();
DROP TRIGGER task_queue_run_truncate ON task;
DROP FUNCTION truncate_queue_run();
DROP TABLE queue_run;

-- A key outlives a task that is deleted before it, and is then as good as new.
DROP INDEX idempotency_key_task;

-- Over an expression, as the indexes of 0012: with statistics of a moment at which no key was live, this one and task_live
-- would look alike to the planner.
DROP INDEX task_unique_key;
ALTER TABLE idempotency_key ALTER COLUMN key TYPE text COLLATE "C";         -- compared by their bytes; no rewrite
ALTER TABLE task ALTER COLUMN unique_key TYPE text COLLATE "C";
CREATE UNIQUE INDEX task_unique_key
ON task ((CASE WHEN finished_at IS NULL THEN unique_key END))
WHERE CASE WHEN finished_at IS NULL THEN unique_key END IS NOT NULL;
