-- What: random bytes that all processes of a deployment share.
-- Why:  docs/api.md: cursors are authenticated, and one process takes those of another.
-- Safe while running? Yes: a table of its own.

CREATE TABLE secret (
    value bytea NOT NULL CHECK (length(value) = 32),
    is_only bool PRIMARY KEY DEFAULT true CHECK (is_only)
);

-- Two random UUIDs have 244 bits by the server's own strong generator; of a digest nobody can tell which they were.
INSERT INTO secret (value) VALUES (sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
