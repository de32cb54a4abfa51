-- What: a key that one live task has, and bounds of the backoff that are a task's own.
-- Why:  README.md, "The API". A task without them costs nothing more: all are NULL, and the index has no entry for it.
-- Safe while running? Yes: columns without a default. Writes wait while the table is read once, for the checks and the
-- index. A process of before goes on beside it, and neither keeps nor needs them.

ALTER TABLE task
    ADD COLUMN unique_key text,
    ADD COLUMN retry_base_seconds double precision CHECK (retry_base_seconds >= 0),
    ADD COLUMN retry_max_seconds double precision CHECK (retry_max_seconds >= 0);

-- For insert_special_tasks and retry_tasks. It has no column that a claim changes.
CREATE UNIQUE INDEX task_unique_key ON task (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;
