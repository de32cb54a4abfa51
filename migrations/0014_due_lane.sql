-- What: a view of how long each lane's oldest due task has waited.
-- Why:  the metrics and the figures of a queue both ask for it.
-- Safe while running? Yes.

-- A step in task_live for each lane, however many tasks there are. NULL: none of its tasks is due.
CREATE VIEW due_lane AS
SELECT queue, kind, priority, (
    SELECT extract(epoch FROM statement_timestamp() - due_at)::float8 FROM task
    WHERE finished_at IS NULL AND status = 'pending'
      AND task.queue = lane.queue AND task.kind = lane.kind AND task.priority = lane.priority
      AND due_at <= statement_timestamp()
    ORDER BY due_at LIMIT 1
) AS oldest_seconds
FROM task_lane AS lane;
