-- What: queues: names that a client may put a task under, with a limit of how many of a queue's tasks run at a time, and a
-- pause. A task without one is in the queue '', which has neither.
-- Why:  docs/architecture.md, "Queues".
-- Safe while running? Writes wait while the two indexes are built: seconds, with millions of tasks that are not final. A
-- process of before goes on beside it, and minds neither limits nor pauses: stop those first.

CREATE TABLE queue (
    name          text COLLATE "C" PRIMARY KEY,
    concurrency   integer CHECK (concurrency > 0),              -- tasks at a time; NULL: any number
    is_paused     boolean NOT NULL DEFAULT false,               -- none starts
    -- For the rate: how many tasks had ended by two moments of the recent past.
    sampled_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    sampled_ended bigint NOT NULL DEFAULT 0,
    earlier_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    earlier_ended bigint NOT NULL DEFAULT 0
);

ALTER TABLE task ADD COLUMN queue text COLLATE "C" NOT NULL DEFAULT '';

-- What runs now of each queue. Small, so that a claim can count it; to count in the table, an index would need the status,
-- and every claim would have to change it.
CREATE TABLE queue_run (
    queue   text COLLATE "C" NOT NULL,
    task_id uuid NOT NULL,
    PRIMARY KEY (queue, task_id)
);

CREATE FUNCTION note_queue_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'processing' THEN
        INSERT INTO queue_run VALUES (NEW.queue, NEW.id);
    ELSE
        DELETE FROM queue_run WHERE queue = NEW.queue AND task_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER task_queue_run AFTER UPDATE ON task FOR EACH ROW
WHEN (NEW.queue <> '' AND (OLD.status = 'processing') <> (NEW.status = 'processing'))
EXECUTE FUNCTION note_queue_run();

-- A queue is there from its first task on.
CREATE FUNCTION name_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO queue (name) VALUES (NEW.queue) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER task_queue_name AFTER INSERT ON task FOR EACH ROW WHEN (NEW.queue <> '') EXECUTE FUNCTION name_queue();

CREATE FUNCTION truncate_queue_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE queue_run;
    RETURN NULL;
END $$;

CREATE TRIGGER task_queue_run_truncate AFTER TRUNCATE ON task FOR EACH STATEMENT EXECUTE FUNCTION truncate_queue_run();

-- How many more tasks of a queue may start. If it has a limit, nobody else starts one of its tasks until this transaction
-- ends. A function sees what was committed while it waited for the lock; the statement around it does not.
CREATE FUNCTION lock_queue(wanted text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found queue;
BEGIN
    SELECT * INTO found FROM queue WHERE name = wanted;
    IF found.concurrency IS NOT NULL THEN
        SELECT * INTO found FROM queue WHERE name = wanted FOR UPDATE;
    END IF;
    RETURN CASE
        WHEN found.is_paused THEN 0
        WHEN found.concurrency IS NULL THEN 1000000000
        ELSE greatest(0, found.concurrency - (SELECT count(*) FROM queue_run WHERE queue = wanted))
    END;
END $$;

-- As before, neither has a column that a claim changes.
DROP VIEW task_lane;
DROP INDEX task_live;
DROP INDEX task_unpublished;
CREATE INDEX task_live ON task (queue, kind, priority, due_at) WHERE finished_at IS NULL;
CREATE INDEX task_unpublished ON task (queue, kind, priority, due_at) WHERE published_at IS NULL AND finished_at IS NULL;

-- The lanes of all tasks that are not final, in each queue: a step in the index for each, however many tasks there are.
CREATE VIEW task_lane AS
WITH RECURSIVE lane AS (
    (SELECT queue, kind, priority FROM task WHERE finished_at IS NULL ORDER BY queue, kind, priority LIMIT 1)
    UNION ALL
    SELECT next.queue, next.kind, next.priority FROM lane, LATERAL (
        SELECT queue, kind, priority FROM task
        WHERE finished_at IS NULL AND (queue, kind, priority) > (lane.queue, lane.kind, lane.priority)
        ORDER BY queue, kind, priority LIMIT 1
    ) AS next
)
SELECT queue, kind, priority FROM lane;

-- The queues whose tasks may start, each with how many more of them.
CREATE VIEW open_queue AS
SELECT '' AS name, 1000000000::bigint AS room
UNION ALL
SELECT name, CASE
    WHEN concurrency IS NULL THEN 1000000000
    ELSE greatest(0, concurrency - (SELECT count(*) FROM queue_run WHERE queue = name))
END
FROM queue WHERE NOT is_paused AND name > '';  -- by the index, as every statement finds its rows

-- The tally counts by queue too.
ALTER TABLE task_tally ADD COLUMN queue text COLLATE "C" NOT NULL DEFAULT '';

CREATE OR REPLACE FUNCTION tally_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, count(*) FROM added GROUP BY queue, status;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, -count(*) FROM removed GROUP BY queue, status;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO task_tally (queue, status, tasks)
        SELECT queue, status, sum(tasks) FROM (
            SELECT queue, status, count(*) AS tasks FROM added GROUP BY queue, status
            UNION ALL
            SELECT queue, status, -count(*) FROM removed GROUP BY queue, status
        ) AS change GROUP BY queue, status HAVING sum(tasks) <> 0;
    ELSE
        TRUNCATE task_tally;  -- not DELETE: it would miss what a fold is just writing
    END IF;
    RETURN NULL;
END $$;
