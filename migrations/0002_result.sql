-- What: what a handler returned, kept with its task, and guarded like the rest of a final task.
-- Why:  README.md, "Tasks of your own". json and not jsonb: it comes back as it was, and may hold what jsonb refuses.
-- Safe while running? Yes: a column without a default, and a trigger that is replaced within the same moment. A process of
-- before goes on beside it.

ALTER TABLE task ADD COLUMN result json;

DROP TRIGGER task_guard ON task;

CREATE TRIGGER task_guard BEFORE UPDATE ON task FOR EACH ROW
WHEN (
    NEW.attempt < OLD.attempt
    OR NEW.id <> OLD.id
    OR OLD.finished_at IS NOT NULL
        AND (NEW.status, NEW.finished_at, NEW.attempt, NEW.failures, NEW.error, NEW.result::text, NEW.content)
            IS DISTINCT FROM
            (OLD.status, OLD.finished_at, OLD.attempt, OLD.failures, OLD.error, OLD.result::text, OLD.content)
    OR OLD.status = 'pending' AND NEW.status = 'completed'
    OR OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.attempt = OLD.attempt
    OR OLD.status = 'processing' AND NEW.status = 'processing'
        AND (NEW.attempt <> OLD.attempt OR NEW.worker_id <> OLD.worker_id)
)
EXECUTE FUNCTION refuse_task_change();
