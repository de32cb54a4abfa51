-- What: schedules, which make a task at each of their moments, and of a task the schedule that made it.
-- Why:  README.md, "Recurring tasks".
-- Safe while running? Yes: a table of its own, and columns without a default. A process of before goes on beside it, and
-- makes no tasks for schedules.

CREATE TABLE schedule (
    name         text COLLATE "C" PRIMARY KEY,
    cron         text NOT NULL,
    timezone     text NOT NULL,
    task         json NOT NULL,                                 -- as a client would create it
    missed       text NOT NULL CHECK (missed IN ('skip', 'last')),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz,                                   -- by a client; NULL until the first change
    next_run_at  timestamptz,                                   -- NULL: it is paused
    last_run_at  timestamptz,                                   -- which moment the last task was made for
    last_task_id uuid
);

-- For find_due_schedules.
CREATE INDEX schedule_due ON schedule (next_run_at) WHERE next_run_at IS NOT NULL;

ALTER TABLE task ADD COLUMN schedule text, ADD COLUMN scheduled_for timestamptz;
