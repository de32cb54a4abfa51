-- What: which handler a task is for, how far it has come, and which kinds a worker serves.
-- Why:  README.md, "Tasks of your own".
-- Safe while running? Yes: columns with a constant default are no rewrite. A process of before goes on beside it, and takes
-- tasks of every kind for its own: stop those first when there are kinds of your own already.

ALTER TABLE task
    ADD COLUMN kind text NOT NULL DEFAULT 'default',
    ADD COLUMN progress json;

ALTER TABLE worker ADD COLUMN kinds text[] NOT NULL DEFAULT '{default}';
