-- migrations: 0001_baseline.sql

CREATE TYPE attempt_outcome AS ENUM (
    'completed',
    'failed',
    'retried',
    'canceled',
    'released',
    'lost'
);

CREATE TYPE task_priority AS ENUM (
    'high',
    'normal',
    'low'
);

CREATE TYPE task_status AS ENUM (
    'pending',
    'processing',
    'completed',
    'failed',
    'canceled'
);

CREATE FUNCTION guard_task() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION lock_queue(wanted text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    found queue;
    parts bigint;
    running bigint;
BEGIN
    SELECT * INTO found FROM queue WHERE name = wanted;
    IF found.concurrency IS NOT NULL THEN
        SELECT * INTO found FROM queue WHERE name = wanted FOR UPDATE;
    END IF;
    IF found.is_paused THEN
        RETURN 0;
    ELSIF found.concurrency IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT count(*), coalesce(sum(tasks), 0) INTO parts, running FROM task_tally
    WHERE queue = wanted AND queue <> '' AND status = 'processing';
    IF parts > 100 THEN  -- every claim would read them again; the janitor comes once in a while
        WITH folded AS (
            DELETE FROM task_tally WHERE ctid IN (
                SELECT ctid FROM task_tally
                WHERE queue = wanted AND queue <> '' AND status = 'processing' FOR UPDATE SKIP LOCKED
            ) RETURNING tasks
        )
        INSERT INTO task_tally (queue, status, tasks) SELECT wanted, 'processing', sum(tasks) FROM folded HAVING count(*) > 0;
    END IF;
    RETURN greatest(0, found.concurrency - running);
END $$;

CREATE FUNCTION queue_room(wanted text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    found queue;
BEGIN
    SELECT * INTO found FROM queue WHERE name = wanted;
    IF found.is_paused THEN
        RETURN 0;
    ELSIF found.concurrency IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN greatest(0, found.concurrency - (
        SELECT coalesce(sum(tasks), 0) FROM task_tally
        WHERE task_tally.queue = wanted AND task_tally.queue <> '' AND status = 'processing'
    ));
END $$;

CREATE FUNCTION tally_tasks() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        WITH counted AS (
            INSERT INTO task_tally (queue, status, tasks) SELECT queue, status, count(*) FROM added GROUP BY queue, status
            RETURNING queue AS name
        )
        -- A queue is there from its first task on.
        INSERT INTO queue (name)
        SELECT DISTINCT name FROM counted
        WHERE name <> '' AND NOT EXISTS (SELECT FROM queue WHERE queue.name = counted.name)
        ORDER BY name
        ON CONFLICT DO NOTHING;
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

CREATE TABLE attempt (
    task_id uuid NOT NULL,
    attempt integer NOT NULL,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    worker text,
    outcome attempt_outcome NOT NULL,
    error jsonb,
    traceback text
);

CREATE TABLE task (
    id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    due_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    published_at timestamp with time zone,
    updated_at timestamp with time zone,
    finished_at timestamp with time zone,
    worker_id uuid,
    status task_status DEFAULT 'pending'::task_status NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    max_attempts integer NOT NULL,
    content text NOT NULL,
    error jsonb,
    traceparent text,
    result json,
    timeout_seconds double precision,
    expires_at timestamp with time zone,
    kind text DEFAULT 'default'::text NOT NULL COLLATE pg_catalog."C",
    progress json,
    retry_of uuid,
    retried_as uuid,
    priority task_priority DEFAULT 'normal'::task_priority NOT NULL,
    started_at timestamp with time zone,
    unique_key text COLLATE pg_catalog."C",
    retry_base_seconds double precision,
    retry_max_seconds double precision,
    schedule text,
    scheduled_for timestamp with time zone,
    queue text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    canceled_at timestamp with time zone,
    CONSTRAINT task_attempts_are_possible CHECK (((max_attempts > 0) AND ((failures >= 0) AND (failures <= attempt)))),
    CONSTRAINT task_is_finished_when_final CHECK (((status = ANY (ARRAY['completed'::task_status, 'failed'::task_status, 'canceled'::task_status])) = (finished_at IS NOT NULL))),
    CONSTRAINT task_is_held_while_processing CHECK (((status = 'processing'::task_status) = (worker_id IS NOT NULL))),
    CONSTRAINT task_retry_base_seconds_check CHECK ((retry_base_seconds >= (0)::double precision)),
    CONSTRAINT task_retry_max_seconds_check CHECK ((retry_max_seconds >= (0)::double precision)),
    CONSTRAINT task_timeout_seconds_check CHECK ((timeout_seconds > (0)::double precision))
)
WITH (autovacuum_vacuum_scale_factor='0.02', fillfactor='45');

CREATE VIEW task_lane AS
 WITH RECURSIVE lane AS (
        ( SELECT task.queue,
            task.kind,
            task.priority
           FROM task
          WHERE (task.finished_at IS NULL)
          ORDER BY task.kind, task.priority, task.queue
         LIMIT 1)
        UNION ALL
         SELECT next.queue,
            next.kind,
            next.priority
           FROM lane lane_1,
            LATERAL ( SELECT task.queue,
                    task.kind,
                    task.priority
                   FROM task
                  WHERE ((task.finished_at IS NULL) AND (ROW(task.kind, task.priority, task.queue) > ROW(lane_1.kind, lane_1.priority, lane_1.queue)))
                  ORDER BY task.kind, task.priority, task.queue
                 LIMIT 1) next
        )
 SELECT queue,
    kind,
    priority
   FROM lane;

CREATE VIEW due_lane AS
 SELECT queue,
    kind,
    priority,
    ( SELECT (EXTRACT(epoch FROM (statement_timestamp() - task.due_at)))::double precision AS "extract"
           FROM task
          WHERE ((task.finished_at IS NULL) AND (task.status = 'pending'::task_status) AND (task.queue = lane.queue) AND (task.kind = lane.kind) AND (task.priority = lane.priority) AND (task.due_at <= statement_timestamp()))
          ORDER BY task.due_at
         LIMIT 1) AS oldest_seconds
   FROM task_lane lane;

CREATE TABLE idempotency_key (
    key text NOT NULL COLLATE pg_catalog."C",
    fingerprint bytea NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE kind (
    name text NOT NULL COLLATE pg_catalog."C",
    max_attempts integer,
    served_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT kind_max_attempts_check CHECK ((max_attempts > 0))
);

CREATE VIEW live_lane AS
 WITH RECURSIVE lane AS (
        ( SELECT task.kind,
            task.priority
           FROM task
          WHERE (task.finished_at IS NULL)
          ORDER BY task.kind, task.priority
         LIMIT 1)
        UNION ALL
         SELECT next.kind,
            next.priority
           FROM lane lane_1,
            LATERAL ( SELECT task.kind,
                    task.priority
                   FROM task
                  WHERE ((task.finished_at IS NULL) AND (ROW(task.kind, task.priority) > ROW(lane_1.kind, lane_1.priority)))
                  ORDER BY task.kind, task.priority
                 LIMIT 1) next
        )
 SELECT kind,
    priority
   FROM lane;

CREATE TABLE queue (
    name text NOT NULL COLLATE pg_catalog."C",
    concurrency integer,
    is_paused boolean DEFAULT false NOT NULL,
    sampled_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    sampled_ended bigint DEFAULT 0 NOT NULL,
    earlier_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    earlier_ended bigint DEFAULT 0 NOT NULL,
    CONSTRAINT queue_concurrency_check CHECK ((concurrency > 0))
);

CREATE TABLE task_tally (
    status task_status NOT NULL,
    tasks bigint NOT NULL,
    queue text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C"
);

CREATE VIEW open_queue AS
 SELECT ''::text AS name,
    NULL::bigint AS room
UNION ALL
 SELECT queue.name,
        CASE
            WHEN (queue.concurrency IS NOT NULL) THEN (GREATEST((0)::numeric, ((queue.concurrency)::numeric - ( SELECT COALESCE(sum(task_tally.tasks), (0)::numeric) AS "coalesce"
               FROM task_tally
              WHERE ((task_tally.queue = queue.name) AND (task_tally.queue <> ''::text) AND (task_tally.status = 'processing'::task_status))))))::bigint
            ELSE NULL::bigint
        END AS room
   FROM queue
  WHERE ((NOT queue.is_paused) AND (queue.name > ''::text));

CREATE TABLE schedule (
    name text NOT NULL COLLATE pg_catalog."C",
    cron text NOT NULL,
    timezone text NOT NULL,
    task json NOT NULL,
    missed text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone,
    next_run_at timestamp with time zone,
    last_run_at timestamp with time zone,
    last_task_id uuid,
    CONSTRAINT schedule_missed_check CHECK ((missed = ANY (ARRAY['skip'::text, 'last'::text])))
);

CREATE TABLE schema_migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE secret (
    value bytea NOT NULL,
    is_only boolean DEFAULT true NOT NULL,
    CONSTRAINT secret_is_only_check CHECK (is_only),
    CONSTRAINT secret_value_check CHECK ((length(value) = 32))
);

CREATE TABLE worker (
    id uuid NOT NULL,
    name text NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    lapsed_at timestamp with time zone,
    kinds text[] DEFAULT '{default}'::text[] NOT NULL,
    epoch integer DEFAULT 0 NOT NULL
);

ALTER TABLE ONLY attempt
    ADD CONSTRAINT attempt_pkey PRIMARY KEY (task_id, attempt);

ALTER TABLE ONLY idempotency_key
    ADD CONSTRAINT idempotency_key_pkey PRIMARY KEY (key);

ALTER TABLE ONLY kind
    ADD CONSTRAINT kind_pkey PRIMARY KEY (name);

ALTER TABLE ONLY queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (name);

ALTER TABLE ONLY schedule
    ADD CONSTRAINT schedule_pkey PRIMARY KEY (name);

ALTER TABLE ONLY schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (name);

ALTER TABLE ONLY secret
    ADD CONSTRAINT secret_pkey PRIMARY KEY (is_only);

ALTER TABLE ONLY task
    ADD CONSTRAINT task_pkey PRIMARY KEY (id);

ALTER TABLE ONLY worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (id);

CREATE INDEX idempotency_key_age ON idempotency_key USING btree (created_at);

CREATE INDEX queue_paused ON queue USING btree (name) WHERE is_paused;

CREATE INDEX schedule_due ON schedule USING btree (next_run_at) WHERE (next_run_at IS NOT NULL);

CREATE INDEX task_expiring ON task USING btree (kind, priority, (
CASE
    WHEN (finished_at IS NULL) THEN expires_at
    ELSE NULL::timestamp with time zone
END)) WHERE (
CASE
    WHEN (finished_at IS NULL) THEN expires_at
    ELSE NULL::timestamp with time zone
END IS NOT NULL);

CREATE INDEX task_in_queue ON task USING btree ((
CASE
    WHEN (queue <> ''::text) THEN queue
    ELSE NULL::text
END), (
CASE
    WHEN (queue <> ''::text) THEN id
    ELSE NULL::uuid
END)) WHERE (
CASE
    WHEN (queue <> ''::text) THEN id
    ELSE NULL::uuid
END IS NOT NULL);

CREATE INDEX task_live ON task USING btree (kind, priority, queue, due_at) WHERE (finished_at IS NULL);

CREATE INDEX task_live_queued ON task USING btree (kind, priority, (
CASE
    WHEN ((queue <> ''::text) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END)) WHERE (
CASE
    WHEN ((queue <> ''::text) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END IS NOT NULL);

CREATE INDEX task_of_kind ON task USING btree ((
CASE
    WHEN (kind <> 'default'::text) THEN kind
    ELSE NULL::text
END), (
CASE
    WHEN (kind <> 'default'::text) THEN id
    ELSE NULL::uuid
END)) WHERE (
CASE
    WHEN (kind <> 'default'::text) THEN id
    ELSE NULL::uuid
END IS NOT NULL);

CREATE INDEX task_tally_queue ON task_tally USING btree (queue, status) WHERE (queue <> ''::text);

CREATE UNIQUE INDEX task_unique_key ON task USING btree ((
CASE
    WHEN (finished_at IS NULL) THEN unique_key
    ELSE NULL::text
END)) WHERE (
CASE
    WHEN (finished_at IS NULL) THEN unique_key
    ELSE NULL::text
END IS NOT NULL);

CREATE INDEX task_unpublished ON task USING btree (kind, priority, queue, (
CASE
    WHEN ((published_at IS NULL) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END)) WHERE (
CASE
    WHEN ((published_at IS NULL) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END IS NOT NULL);

CREATE INDEX task_unpublished_queued ON task USING btree (kind, priority, (
CASE
    WHEN ((queue <> ''::text) AND (published_at IS NULL) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END)) WHERE (
CASE
    WHEN ((queue <> ''::text) AND (published_at IS NULL) AND (finished_at IS NULL)) THEN due_at
    ELSE NULL::timestamp with time zone
END IS NOT NULL);

CREATE INDEX task_unsuccessful ON task USING btree ((
CASE
    WHEN (canceled_at IS NOT NULL) THEN 'canceled'::text
    WHEN ((finished_at IS NOT NULL) AND (error IS NOT NULL)) THEN 'failed'::text
    ELSE NULL::text
END), (
CASE
    WHEN ((canceled_at IS NOT NULL) OR ((finished_at IS NOT NULL) AND (error IS NOT NULL))) THEN id
    ELSE NULL::uuid
END)) WHERE (
CASE
    WHEN ((canceled_at IS NOT NULL) OR ((finished_at IS NOT NULL) AND (error IS NOT NULL))) THEN id
    ELSE NULL::uuid
END IS NOT NULL);

CREATE UNIQUE INDEX worker_state ON worker USING btree (id, epoch, lapsed_at);

CREATE TRIGGER task_guard BEFORE UPDATE ON task FOR EACH ROW WHEN ((NOT ((new.id = old.id) AND (((old.status = 'pending'::task_status) AND (new.status = 'processing'::task_status) AND (new.attempt > old.attempt)) OR ((old.status = 'processing'::task_status) AND (new.status <> 'processing'::task_status) AND (new.attempt >= old.attempt)))))) EXECUTE FUNCTION guard_task();

CREATE TRIGGER task_tally_delete AFTER DELETE ON task REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_insert AFTER INSERT ON task REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_truncate AFTER TRUNCATE ON task FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();

CREATE TRIGGER task_tally_update AFTER UPDATE ON task REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tally_tasks();
