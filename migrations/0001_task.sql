-- What: the tasks, the workers that hold them, a tally of the statuses, and the guards.
-- Why:  docs/architecture.md. The table states its own truth, whoever writes to it.
-- Safe while running? It is the first: nothing runs yet.

CREATE TYPE task_status AS ENUM ('pending', 'processing', 'completed', 'failed', 'canceled');

-- One row for each process that runs tasks: the lease of all the tasks that it holds.
CREATE TABLE worker (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,                                   -- host and pid, for people
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    lapsed_at  timestamptz                                      -- declared dead by a rescuer
);

CREATE TABLE task (
    id           uuid PRIMARY KEY,                              -- UUIDv7: inserts stay at the hot end
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at       timestamptz NOT NULL DEFAULT clock_timestamp(),-- not to be claimed before
    published_at timestamptz,                                   -- NULL: the relay has to publish it when due
    updated_at   timestamptz,                                   -- NULL until the first change
    finished_at  timestamptz,
    worker_id    uuid,                                          -- the holder, while processing
    status       task_status NOT NULL DEFAULT 'pending',
    attempt      integer NOT NULL DEFAULT 0,                    -- claims so far; only grows: the fencing token
    failures     integer NOT NULL DEFAULT 0,                    -- what max_attempts limits
    max_attempts integer NOT NULL,
    content      text NOT NULL,
    error        jsonb,
    traceparent  text,
    CONSTRAINT task_is_held_while_processing CHECK ((status = 'processing') = (worker_id IS NOT NULL)),
    CONSTRAINT task_is_finished_when_final CHECK ((status IN ('completed', 'failed', 'canceled')) = (finished_at IS NOT NULL)),
    CONSTRAINT task_attempts_are_possible CHECK (max_attempts > 0 AND failures BETWEEN 0 AND attempt)
) WITH (
    fillfactor = 60,                                            -- room for a claim and a finish on the row's own page
    autovacuum_vacuum_scale_factor = 0.02
);

-- Neither index has a column that a claim changes, so that a claim stays on its page (a HOT update).

-- For find_due_tasks, publish_due_tasks (what was lost), rescue_tasks, measure.
CREATE INDEX task_live ON task (due_at) WHERE finished_at IS NULL;

-- For publish_due_tasks (what nobody has published yet): empty while Redis is there and nothing is retried.
CREATE INDEX task_unpublished ON task (due_at) WHERE published_at IS NULL AND finished_at IS NULL;


-- The database guards itself: no bug and no person at psql can revive a final task or take an attempt back.
CREATE FUNCTION refuse_task_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'task %: % (attempt %) -> % (attempt %) is not allowed',
        OLD.id, OLD.status, OLD.attempt, NEW.status, NEW.attempt USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER task_guard BEFORE UPDATE ON task FOR EACH ROW
WHEN (
    NEW.attempt < OLD.attempt
    OR NEW.id <> OLD.id
    OR OLD.finished_at IS NOT NULL
        AND (NEW.status, NEW.finished_at, NEW.attempt, NEW.failures, NEW.error, NEW.content)
            IS DISTINCT FROM (OLD.status, OLD.finished_at, OLD.attempt, OLD.failures, OLD.error, OLD.content)
    OR OLD.status = 'pending' AND NEW.status = 'completed'
    OR OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.attempt = OLD.attempt
    OR OLD.status = 'processing' AND NEW.status = 'processing'
        AND (NEW.attempt <> OLD.attempt OR NEW.worker_id <> OLD.worker_id)
)
EXECUTE FUNCTION refuse_task_change();


-- How many tasks are in each status, at a cost that does not grow with the table: every statement appends what it
-- changed, a reader adds up, and the janitor folds the rows together. Appending never waits for anybody.
CREATE TABLE task_tally (status task_status NOT NULL, tasks bigint NOT NULL);

CREATE FUNCTION tally_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO task_tally SELECT status, count(*) FROM added GROUP BY status;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO task_tally SELECT status, -count(*) FROM removed GROUP BY status;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO task_tally
        SELECT status, sum(tasks) FROM (
            SELECT status, count(*) AS tasks FROM added GROUP BY status
            UNION ALL
            SELECT status, -count(*) FROM removed GROUP BY status
        ) AS change GROUP BY status HAVING sum(tasks) <> 0;
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
