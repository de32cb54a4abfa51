-- What: the time limit of a run, and the time after which a task must not start any more.
-- Why:  README.md, "A task". A task without them costs nothing more: both are NULL, and the index has no entry for it.
-- Safe while running? Yes: columns without a default, and an index over no row yet. A process of before goes on beside it,
-- and neither keeps nor needs them.

ALTER TABLE task
    ADD COLUMN timeout_seconds double precision CHECK (timeout_seconds > 0),
    ADD COLUMN expires_at timestamptz;

-- For publish_due_tasks.
CREATE INDEX task_expiring ON task (expires_at) WHERE expires_at IS NOT NULL AND finished_at IS NULL;
