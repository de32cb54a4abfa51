-- What: how the runs of a task ended, and when its last one started.
-- Why:  docs/architecture.md, "The history of a task". A run that completes its task has no row here, and a claim writes no
-- further column: behind the content it would have the whole row written into the log.
-- Safe while running? Yes: a table of its own, and a column without a default. A process of before goes on beside it; what
-- it runs has no history, or one that starts as it ends.

CREATE TYPE attempt_outcome AS ENUM ('completed', 'failed', 'retried', 'canceled', 'released', 'lost');

-- No foreign key: it would cost a look for each row, and for each task that is deleted. Rows come only with a change of
-- their task, and go only with it.
CREATE TABLE attempt (
    task_id    uuid NOT NULL,
    attempt    integer NOT NULL,                                -- as the task counts them
    started_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker     text,                                            -- its name, for people
    outcome    attempt_outcome NOT NULL,
    error      jsonb,
    traceback  text,
    PRIMARY KEY (task_id, attempt)
);

-- Of the last run, from its first report of progress on.
ALTER TABLE task ADD COLUMN started_at timestamptz;
