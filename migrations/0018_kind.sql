-- What: the kinds that workers have served, each with its max_attempts.
-- Why:  a create is taken while all workers of its kind are away for a moment, and its attempts are those of its kind, wherever
--       it arrives.
-- Safe while running? Yes: a table of its own. A process of before goes on beside it; kinds that only such processes begin to
-- serve are known once they have ended.

CREATE TABLE kind (
    name         text COLLATE "C" PRIMARY KEY,
    max_attempts integer CHECK (max_attempts > 0),              -- NULL: as the process that creates the task has it
    served_at    timestamptz NOT NULL DEFAULT clock_timestamp() -- when a worker served it last, within an hour
);

INSERT INTO kind (name) SELECT DISTINCT unnest(kinds) FROM worker;
