-- What: the schema of version 0.2.0.
-- Why:  docs/architecture.md. The database checks every write itself.
-- Safe while running? It is the first migration: nothing runs yet. A database that version 0.1 brought to 0021_worker_epoch.sql
-- has this schema already.

CREATE TYPE task_status AS ENUM ('pending', 'processing', 'completed', 'failed', 'canceled');
CREATE TYPE task_priority AS ENUM ('high', 'normal', 'low');
CREATE TYPE attempt_outcome AS ENUM ('completed', 'failed', 'retried', 'canceled', 'released', 'lost');


-- One row for each process that runs tasks: the lease of all the tasks that it holds.
CREATE TABLE worker (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,                                   -- host and pid, for people
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    lapsed_at  timestamptz,                                     -- declared dead by a rescuer
    kinds      text[] NOT NULL DEFAULT '{default}',             -- the kinds that it serves
    epoch      integer NOT NULL DEFAULT 0                       -- each claim names it; a later epoch refuses earlier claims
);

-- A claim locks its worker FOR KEY SHARE. This index makes a change of the epoch, or a death, a change of the key: it waits for
-- those locks, and claims of an older snapshot see it. A change of expires_at is no change of the key.
-- https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS
CREATE UNIQUE INDEX worker_state ON worker (id, epoch, lapsed_at);


CREATE TABLE task (
    id                 uuid PRIMARY KEY,                        -- UUIDv7: inserts go to the end of the index
    created_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at             timestamptz NOT NULL DEFAULT clock_timestamp(), -- no claim before
    published_at       timestamptz,                             -- NULL: the relay publishes it when it is due
    updated_at         timestamptz,                             -- NULL until the first change
    finished_at        timestamptz,
    worker_id          uuid,                                    -- the holder, while processing
    status             task_status NOT NULL DEFAULT 'pending',
    attempt            integer NOT NULL DEFAULT 0,              -- claims so far; only grows: the fencing token
    failures           integer NOT NULL DEFAULT 0,              -- what max_attempts limits
    max_attempts       integer NOT NULL,
    content            text NOT NULL,
    error              jsonb,
    traceparent        text,
    result             json,                                    -- not jsonb: it keeps the text, and values that jsonb refuses
    timeout_seconds    double precision CHECK (timeout_seconds > 0),
    expires_at         timestamptz,                             -- no start after
    kind               text COLLATE "C" NOT NULL DEFAULT 'default',
    progress           json,
    retry_of           uuid,                                    -- the final task that this one repeats …
    retried_as         uuid,                                    -- … and the task that repeats this one
    priority           task_priority NOT NULL DEFAULT 'normal',
    started_at         timestamptz,                             -- of the last run, from its first report of progress
    unique_key         text COLLATE "C",                        -- at most one live task has it
    retry_base_seconds double precision CHECK (retry_base_seconds >= 0),
    retry_max_seconds  double precision CHECK (retry_max_seconds >= 0),
    schedule           text,
    scheduled_for      timestamptz,
    queue              text COLLATE "C" NOT NULL DEFAULT '',    -- '': no queue, so no limit and no pause
    canceled_at        timestamptz,
    CONSTRAINT task_is_held_while_processing CHECK ((status = 'processing') = (worker_id IS NOT NULL)),
    CONSTRAINT task_is_finished_when_final CHECK ((status IN ('completed', 'failed', 'canceled')) = (finished_at IS NOT NULL)),
    CONSTRAINT task_attempts_are_possible CHECK (max_attempts > 0 AND failures BETWEEN 0 AND attempt)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    -- One statement often claims all tasks of a page, and can't reuse the versions that it leaves behind. Half of each page is
    -- free, so that a claim and an end stay on it, and no index has to change.
    fillfactor = 45
);

-- No index has a column that a claim changes: a claim is a HOT update.
-- https://www.postgresql.org/docs/current/storage-hot.html
--
-- Most indexes are over expressions. No other index has these expressions, so no statistics can make another index look as good
-- to the planner, for example those of a moment at which nothing waited. A plain task has no entry in most of them.

-- Live tasks by lane and queue: find_due_tasks, publish_due_tasks (lost entries), rescue_tasks, measure.
CREATE INDEX task_live ON task (kind, priority, queue, due_at) WHERE finished_at IS NULL;

CREATE INDEX task_live_queued
ON task (kind, priority, (CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END IS NOT NULL;

-- Tasks that are not published: publish_due_tasks. Empty while Redis is there and nothing is retried.
CREATE INDEX task_unpublished
ON task (kind, priority, queue, (CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL;

CREATE INDEX task_unpublished_queued
ON task (kind, priority, (CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END))
WHERE CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL;

-- Tasks that may expire: publish_due_tasks.
CREATE INDEX task_expiring
ON task (kind, priority, (CASE WHEN finished_at IS NULL THEN expires_at END))
WHERE CASE WHEN finished_at IS NULL THEN expires_at END IS NOT NULL;

-- Live unique keys: the inserts and retry_tasks.
CREATE UNIQUE INDEX task_unique_key
ON task ((CASE WHEN finished_at IS NULL THEN unique_key END))
WHERE CASE WHEN finished_at IS NULL THEN unique_key END IS NOT NULL;

-- Searches: docs/architecture.md, "Searches". Rare tasks are found at once behind millions of completed ones.
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


-- The database guards itself: no bug, and no statement of an operator, revives a final task or takes an attempt back.
CREATE FUNCTION guard_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt < OLD.attempt
        OR NEW.id <> OLD.id
        OR OLD.finished_at IS NOT NULL
            AND (NEW.status, NEW.finished_at, NEW.attempt, NEW.failures, NEW.error, NEW.result::text, NEW.content)
                IS DISTINCT FROM
                (OLD.status, OLD.finished_at, OLD.attempt, OLD.failures, OLD.error, OLD.result::text, OLD.content)
        OR OLD.status = 'pending' AND NEW.status = 'completed'
        OR OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.attempt = OLD.attempt
        OR OLD.status = 'processing' AND NEW.status = 'processing'
            AND (NEW.attempt <> OLD.attempt OR NEW.worker_id <> OLD.worker_id)
    THEN
        RAISE EXCEPTION 'task %: % (attempt %) -> % (attempt %) is not allowed',
            OLD.id, OLD.status, OLD.attempt, NEW.status, NEW.attempt USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

-- The condition covers claims and the ends of runs, which are nearly all changes, so that the function runs for other changes
-- alone. Each statement reads the condition again, and its length costs time.
CREATE TRIGGER task_guard BEFORE UPDATE ON task FOR EACH ROW
WHEN (
    NOT (
        NEW.id = OLD.id AND (
            OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.attempt > OLD.attempt
            OR OLD.status = 'processing' AND NEW.status <> 'processing' AND NEW.attempt >= OLD.attempt
        )
    )
)
EXECUTE FUNCTION guard_task();


-- A queue exists from its first task on. Its limit and its pause hold for all workers together.
CREATE TABLE queue (
    name          text COLLATE "C" PRIMARY KEY,
    concurrency   integer CHECK (concurrency > 0),              -- NULL: no limit
    is_paused     boolean NOT NULL DEFAULT false,
    -- For the rate: how many tasks had ended at two moments of the recent past.
    sampled_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    sampled_ended bigint NOT NULL DEFAULT 0,
    earlier_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    earlier_ended bigint NOT NULL DEFAULT 0
);

CREATE INDEX queue_paused ON queue (name) WHERE is_paused;


-- How many tasks are in each status, at a cost that does not grow with the table: every statement appends what it changed,
-- a reader adds the rows up, and the janitor folds them. Appending waits for no lock.
CREATE TABLE task_tally (
    status task_status NOT NULL,
    tasks  bigint NOT NULL,
    queue  text COLLATE "C" NOT NULL DEFAULT ''
);

-- Read for one queue. Tasks without a queue have no entry.
CREATE INDEX task_tally_queue ON task_tally (queue, status) WHERE queue <> '';

CREATE FUNCTION tally_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE TRIGGER task_tally_insert AFTER INSERT ON task
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_update AFTER UPDATE ON task
REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_delete AFTER DELETE ON task
REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_truncate AFTER TRUNCATE ON task
FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();


-- Returns how many more tasks of a queue may start; NULL: any number. If the queue has a limit, no other transaction starts one
-- of its tasks until this one ends. A function sees what was committed while it waited for the lock; the statement around it
-- does not.
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

-- The same without a lock, for statements that start no task.
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

-- The queues whose tasks may start, each with how many more of them; NULL: any number.
CREATE VIEW open_queue AS
SELECT '' AS name, NULL::bigint AS room
UNION ALL
SELECT name, CASE WHEN concurrency IS NOT NULL THEN
    greatest(0, concurrency - (
        SELECT coalesce(sum(tasks), 0) FROM task_tally
        WHERE task_tally.queue = name AND task_tally.queue <> '' AND status = 'processing'
    ))::bigint
END
FROM queue WHERE NOT is_paused AND name > '';  -- by the index, as every statement finds its rows


-- A lane is a kind and a priority. The views of lanes take one step in task_live for each, however many tasks there are.
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

CREATE VIEW task_lane AS
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

-- How long the oldest due task of each lane and queue has waited; NULL: no task is due.
CREATE VIEW due_lane AS
SELECT queue, kind, priority, (
    SELECT extract(epoch FROM statement_timestamp() - due_at)::float8 FROM task
    WHERE finished_at IS NULL AND status = 'pending'
      AND task.queue = lane.queue AND task.kind = lane.kind AND task.priority = lane.priority
      AND due_at <= statement_timestamp()
    ORDER BY due_at LIMIT 1
) AS oldest_seconds
FROM task_lane AS lane;


-- The keys under which clients created tasks, each with the request that it was used for. The statement that commits a task
-- commits its key. A key may outlive its task, and is then free again.
CREATE TABLE idempotency_key (
    key         text COLLATE "C" PRIMARY KEY,
    fingerprint bytea NOT NULL,
    task_id     uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX idempotency_key_age ON idempotency_key (created_at);


-- How the runs of a task ended. A run that completes its task has no row here.
-- No foreign key: it would cost a look for each row, and for each task that is deleted. Rows come only with a change of their
-- task, and go only with it.
CREATE TABLE attempt (
    task_id    uuid NOT NULL,
    attempt    integer NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker     text,
    outcome    attempt_outcome NOT NULL,
    error      jsonb,
    traceback  text,
    PRIMARY KEY (task_id, attempt)
);


CREATE TABLE schedule (
    name         text COLLATE "C" PRIMARY KEY,
    cron         text NOT NULL,
    timezone     text NOT NULL,
    task         json NOT NULL,                                 -- as the client sent it
    missed       text NOT NULL CHECK (missed IN ('skip', 'last')),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz,
    next_run_at  timestamptz,                                   -- NULL: paused
    last_run_at  timestamptz,
    last_task_id uuid
);

-- For find_due_schedules.
CREATE INDEX schedule_due ON schedule (next_run_at) WHERE next_run_at IS NOT NULL;


-- The kinds that workers have served, each with its max_attempts: a create is taken while all workers of its kind are away for a
-- moment, and its attempts are those of its kind, whichever process it reaches.
CREATE TABLE kind (
    name         text COLLATE "C" PRIMARY KEY,
    max_attempts integer CHECK (max_attempts > 0),
    served_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);


-- Random bytes that all processes of a deployment share: they authenticate cursors.
CREATE TABLE secret (
    value   bytea NOT NULL CHECK (length(value) = 32),
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only)
);

-- Two random UUIDs have 244 bits of the server's own strong generator; their digest does not reveal them.
INSERT INTO secret (value) VALUES (sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
