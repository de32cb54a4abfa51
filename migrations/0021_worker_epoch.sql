-- What: a worker has an epoch, which each of its claims names; a renewal of its lease waits for no claim.
-- Why:  the answer to a claim may be lost, and the claim may still come, however long after. A worker that begins a new epoch
--       refuses it; before, the worker had to rely on the server's own time limit, which a pooler may have dropped. And a
--       claim whose commit waits for a standby held up the renewal, which cost a living worker its lease.
-- Safe while running? It changes no row. A process of the version before goes on beside it: its claims wait as before.

ALTER TABLE worker ADD COLUMN epoch integer NOT NULL DEFAULT 0;

-- A claim locks its worker FOR KEY SHARE. By this index a change of the epoch, or a death, is a change of the key, which waits
-- for those locks and is seen by claims of an older snapshot; a change of expires_at is none.
-- https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS
CREATE UNIQUE INDEX worker_state ON worker (id, epoch, lapsed_at);
