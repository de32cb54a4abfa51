-- What: a queue is looked for before it is made.
-- Why:  nearly always it is there, and to try to make it costs three times as much.
-- Safe while running? Yes: the function is replaced within the same moment.

CREATE OR REPLACE FUNCTION name_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM queue WHERE name = NEW.queue) THEN
        INSERT INTO queue (name) VALUES (NEW.queue) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
