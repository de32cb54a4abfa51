-- What: room for a second version of each row on its page; a guard that is asked about unusual changes alone; a tally in one
--       pass.
-- Why:  all tasks of a page are often claimed by one statement, which can reuse nothing that it leaves behind: a page that was
--       filled to more than its half had no room for a third of them, and each that moved to another page had to be written
--       into an index. Conditions of a trigger are read anew for each statement, and cost by their length.
-- Safe while running? Yes: pages are filled as told from now on, and the triggers are replaced within the same moment.

ALTER TABLE task SET (fillfactor = 45);

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

DROP TRIGGER task_guard ON task;
DROP FUNCTION refuse_task_change();

-- Not about claims and the ends of runs, which are nearly all there is: what may go wrong in them is in the condition.
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

CREATE OR REPLACE FUNCTION note_queue_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'processing' AND OLD.status <> 'processing' THEN
        INSERT INTO queue_run VALUES (NEW.queue, NEW.id);
    ELSIF NEW.status <> 'processing' AND OLD.status = 'processing' THEN
        DELETE FROM queue_run WHERE queue = NEW.queue AND task_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER task_queue_run ON task;
CREATE TRIGGER task_queue_run AFTER UPDATE ON task FOR EACH ROW WHEN (NEW.queue <> '') EXECUTE FUNCTION note_queue_run();

CREATE OR REPLACE FUNCTION tally_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, count(*) FROM added GROUP BY queue, status;
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
