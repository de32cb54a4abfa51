-- What: the keys under which clients created tasks, each with what it was used for.
-- Why:  README.md, "Exactly one create". A key is committed in the statement that commits its task.
-- Safe while running? Yes: a table of its own. A process of before goes on beside it, and takes no keys.

CREATE TABLE idempotency_key (
    key         text PRIMARY KEY,
    fingerprint bytea NOT NULL,                                 -- of the request: another one may not use the key
    task_id     uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- For delete_finished_tasks, and for forget_keys.
CREATE INDEX idempotency_key_task ON idempotency_key (task_id);
CREATE INDEX idempotency_key_age ON idempotency_key (created_at);
