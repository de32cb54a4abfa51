-- Every query of the service, in the order of a task's life, each with its transition written above it.
--
-- One statement is one transition: its WHERE names the statuses that it may leave, so losing a race is an answer and
-- not an error. Each may run twice: a connection that is lost during a commit leaves its outcome unknown, and the
-- statement is simply run again. Rows are locked in the order of their ids, or two groups could deadlock.
-- Decisions use PostgreSQL's clock alone.

-- insert_tasks --
-- (nothing) -> pending. It is refused when the same call's first try was committed. (To pass over ids that are there costs a
-- seventh of the whole.)
INSERT INTO task (id, content, max_attempts, traceparent, published_at)
SELECT id, content, max_attempts, traceparent, CASE WHEN is_published THEN clock_timestamp() END
FROM unnest(
    %(ids)s::uuid[], %(contents)s::text[], %(max_attempts)s::int[], %(traceparents)s::text[], %(published)s::bool[]
) AS new (id, content, max_attempts, traceparent, is_published)
RETURNING id, created_at;

-- insert_held_tasks --
-- (nothing) -> processing: the same for a worker of the same process that has nothing else to do, those of them that it is to
-- hold. They are pending if it was declared dead; the lock on its row is that of claim_tasks.
WITH holder AS (
    SELECT id FROM worker
    WHERE id = %(worker_id)s::uuid AND epoch = %(epoch)s::int AND lapsed_at IS NULL FOR KEY SHARE
)
INSERT INTO task (
    id, content, max_attempts, traceparent, published_at, created_at, worker_id, status, attempt, updated_at
)
SELECT new.id, content, max_attempts, traceparent, CASE WHEN is_published THEN clock_timestamp() END, clock_timestamp(),
    holder.id, CASE WHEN holder.id IS NULL THEN 'pending' ELSE 'processing' END::task_status,
    CASE WHEN holder.id IS NULL THEN 0 ELSE 1 END, CASE WHEN holder.id IS NOT NULL THEN clock_timestamp() END
FROM unnest(
    %(ids)s::uuid[], %(contents)s::text[], %(max_attempts)s::int[], %(traceparents)s::text[], %(published)s::bool[],
    %(held)s::bool[]
) AS new (id, content, max_attempts, traceparent, is_published, is_held) LEFT JOIN holder ON is_held
RETURNING id, created_at, worker_id IS NOT NULL;

-- insert_tasks_with_options --
-- (nothing) -> pending, for tasks with options or a key; or processing, by the rules of insert_held_tasks, unless they have
-- expired or their queue may let none start. A key that is there already, from the same call's first try or from another
-- create, keeps its task from being inserted. So does a live task with the same unique key: its id comes back instead, and
-- the key remembers it. No row for one whose key is there, and for one that lost a race for its unique key. Keys are locked
-- in their order, and then unique keys in theirs, or two groups could deadlock.
WITH new AS (
    SELECT new.*, live.id AS live_id FROM json_to_recordset(%(tasks)s::json) AS new (
        id uuid, content text, max_attempts int, traceparent text, is_published bool, delay_seconds float8,
        run_at timestamptz, timeout_seconds float8, expires_at timestamptz, kind text, priority task_priority, queue text,
        unique_key text, retry_base_seconds float8, retry_max_seconds float8, key text, fingerprint text, is_held bool
    ) LEFT JOIN LATERAL (  -- a plain join could be planned as a scan of the whole index
        SELECT id FROM task WHERE CASE WHEN finished_at IS NULL THEN unique_key END = new.unique_key LIMIT 1
    ) AS live ON true
), kept AS (
    INSERT INTO idempotency_key (key, fingerprint, task_id)
    SELECT key, decode(fingerprint, 'hex'), coalesce(live_id, id) FROM new WHERE key IS NOT NULL ORDER BY key
    ON CONFLICT (key) DO NOTHING
    RETURNING key, task_id
), wanted AS (
    SELECT * FROM new WHERE key IS NULL OR (key, coalesce(live_id, id)) IN (SELECT key, task_id FROM kept)
), holder AS (
    SELECT id FROM worker
    WHERE id = %(worker_id)s::uuid AND epoch = %(epoch)s::int AND lapsed_at IS NULL FOR KEY SHARE
), made AS (
    INSERT INTO task (
        id, content, max_attempts, traceparent, published_at, created_at, due_at, timeout_seconds, expires_at, kind, priority,
        queue, unique_key, retry_base_seconds, retry_max_seconds, worker_id, status, attempt, updated_at
    )
    SELECT wanted.id, content, max_attempts, traceparent, CASE WHEN is_published THEN clock_timestamp() END, clock_timestamp(),
        coalesce(run_at, clock_timestamp() + make_interval(secs => coalesce(delay_seconds, 0))),
        timeout_seconds, expires_at, coalesce(kind, 'default'), coalesce(priority, 'normal'),
        coalesce(queue, ''), unique_key, retry_base_seconds, retry_max_seconds,
        holder.id, CASE WHEN holder.id IS NULL THEN 'pending' ELSE 'processing' END::task_status,
        CASE WHEN holder.id IS NULL THEN 0 ELSE 1 END, CASE WHEN holder.id IS NOT NULL THEN clock_timestamp() END
    FROM wanted LEFT JOIN holder ON is_held AND (expires_at IS NULL OR expires_at > statement_timestamp())
        AND (SELECT concurrency IS NULL AND NOT is_paused FROM queue WHERE name = wanted.queue) IS NOT FALSE
    WHERE live_id IS NULL ORDER BY unique_key, wanted.id
    ON CONFLICT DO NOTHING
    RETURNING id, created_at, due_at, worker_id
)
SELECT id, NULL AS live_id, created_at, CASE WHEN due_at > clock_timestamp() THEN due_at END, worker_id IS NOT NULL FROM made
UNION ALL
SELECT id, live_id, NULL, NULL, false FROM wanted WHERE live_id IS NOT NULL;

-- find_keyed_tasks --
-- No change: the tasks that were created under these keys, or, made before the key, were found by their unique key.
SELECT key, encode(fingerprint, 'hex'), task.created_at >= idempotency_key.created_at,
    id, content, status, task.created_at, greatest(updated_at, finished_at), error,
    nullif(kind, 'default'), nullif(priority, 'normal'), nullif(queue, ''), progress, result::text,
    CASE WHEN status = 'pending' AND due_at > statement_timestamp() THEN due_at END, timeout_seconds, expires_at,
    retry_of, retried_as, schedule, scheduled_for, unique_key
FROM idempotency_key JOIN task ON task.id = task_id WHERE key = ANY(%(keys)s::text[]);

-- forget_orphaned_keys --
-- Those of the keys that have no task: it lost a race for its unique key, or is deleted. What has one is committed with it.
DELETE FROM idempotency_key WHERE key IN (
    SELECT key FROM idempotency_key
    WHERE key = ANY(%(keys)s::text[]) AND NOT EXISTS (SELECT FROM task WHERE task.id = task_id)
    ORDER BY key FOR UPDATE
);

-- retry_tasks --
-- (nothing) -> pending: new tasks with the content and the settings of final ones, each linked to its own. A row for
-- each final one, unless it was retried before and may not be again, with its lane if its new one is made: not when
-- another live task has the unique key. What the same call's first try has made counts as made.
WITH wanted AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(new_ids)s::uuid[]) AS wanted (id, new_id)
), old AS (
    SELECT task.*, new_id FROM wanted JOIN task ON task.id = wanted.id
    WHERE status IN ('completed', 'failed', 'canceled')
      AND (%(is_again)s::bool OR retried_as IS NULL OR retried_as = new_id)
    ORDER BY task.id FOR UPDATE OF task
), new AS (
    INSERT INTO task (
        id, content, max_attempts, traceparent, kind, priority, queue, timeout_seconds, unique_key, retry_base_seconds,
        retry_max_seconds, schedule, scheduled_for, published_at, retry_of
    )
    SELECT new_id, content, max_attempts, traceparent, kind, priority, queue, timeout_seconds, unique_key,
        retry_base_seconds, retry_max_seconds, schedule, scheduled_for,
        CASE WHEN %(is_published)s::bool THEN clock_timestamp() END, id
    FROM old ORDER BY unique_key, id
    ON CONFLICT DO NOTHING
    RETURNING id, retry_of
), linked AS (
    UPDATE task SET retried_as = new.id FROM new WHERE task.id = new.retry_of
)
SELECT id, new_id IN (SELECT id FROM new) OR retried_as IS NOT DISTINCT FROM new_id, kind, priority FROM old;

-- weigh_tasks --
-- No change: how many bytes the content of each takes in the table, without reading it.
SELECT id::text, pg_column_size(content) FROM task WHERE id = ANY(%(ids)s::uuid[]);

-- unpublish_tasks --
-- pending stays pending: the stream did not take them, so the relay has to.
UPDATE task SET published_at = NULL
WHERE id IN (SELECT id FROM task WHERE id = ANY(%(ids)s::uuid[]) AND status = 'pending' ORDER BY id FOR UPDATE);

-- find_lanes --
-- No change: which lanes there are tasks in that are not final.
SELECT kind, priority FROM live_lane;

-- publish_due_tasks --
-- pending stays pending: due tasks of a lane that are not in its stream, to be published now. Either nobody has published
-- them yet, or they were published longer ago than the oldest entry that still waits in the stream, and so were lost.
-- pending -> failed: those that did not start before they expired.
-- The conditions are those of their indexes, to the letter (migrations/0001_baseline.sql).
-- What has no queue may always start. What has one is looked at in the order of its time, so many at once, whatever the
-- number of queues. If these are as many as that, and too few of them may start, each queue is looked at: those that are
-- paused, or at their limit, may hide the others.
-- One row: the ids to publish, those that expired, and the seconds until the next could be due or expire (NULL: none).
WITH RECURSIVE expired AS (
    UPDATE task SET
        status = 'failed', updated_at = clock_timestamp(), finished_at = clock_timestamp(),
        error = jsonb_build_object('type', 'Expired', 'message', 'It could not start in time.', 'attempt', attempt)
    WHERE id IN (
        SELECT id FROM task
        WHERE CASE WHEN finished_at IS NULL THEN expires_at END <= statement_timestamp()
          AND status = 'pending' AND kind = %(kind)s AND priority = %(priority)s::task_priority
        ORDER BY CASE WHEN finished_at IS NULL THEN expires_at END LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )
    RETURNING id
), plain AS (
    SELECT id, due_at FROM task
    WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END <= statement_timestamp()
      AND status = 'pending' AND queue = '' AND kind = %(kind)s AND priority = %(priority)s::task_priority
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
    ORDER BY CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END LIMIT %(limit)s
), first AS MATERIALIZED (
    SELECT id, queue, due_at,
        status = 'pending' AND (expires_at IS NULL OR expires_at > statement_timestamp()) AS is_due
    FROM task
    WHERE CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END <= statement_timestamp()
      AND kind = %(kind)s AND priority = %(priority)s::task_priority
    ORDER BY CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END
    LIMIT %(limit)s + 200
), open AS MATERIALIZED (
    SELECT id, due_at FROM (
        SELECT id, due_at, place,
            max(CASE WHEN place = 1 THEN coalesce(queue_room(queue), %(limit)s) END) OVER (PARTITION BY queue) AS room
        FROM (
            SELECT *, row_number() OVER (PARTITION BY queue ORDER BY due_at) AS place FROM first WHERE is_due
        ) AS placed
    ) AS due
    WHERE place <= room ORDER BY due_at LIMIT %(limit)s
), named AS (
    (SELECT queue FROM task
     WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL AND queue > '' AND kind = %(kind)s AND priority = %(priority)s::task_priority
       AND (SELECT count(*) FROM first) >= %(limit)s + 200 AND (SELECT count(*) FROM open) < %(limit)s
     ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT next.queue FROM named, LATERAL (
        SELECT queue FROM task
        WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END IS NOT NULL AND queue > named.queue AND kind = %(kind)s AND priority = %(priority)s::task_priority
        ORDER BY queue LIMIT 1
    ) AS next
), hidden AS (
    SELECT due.id, due.due_at FROM named, LATERAL (
        SELECT id, due_at FROM task
        WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END <= statement_timestamp()
          AND status = 'pending' AND queue = named.queue AND kind = %(kind)s AND priority = %(priority)s::task_priority
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END
        LIMIT least(%(limit)s, queue_room(named.queue))
    ) AS due LIMIT %(limit)s
), lost AS (
    SELECT id FROM task
    WHERE finished_at IS NULL AND status = 'pending' AND queue = '' AND kind = %(kind)s AND priority = %(priority)s::task_priority
      AND due_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s)
      AND published_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s)
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
    ORDER BY due_at LIMIT %(limit)s
), oldest AS MATERIALIZED (
    SELECT id, queue, status = 'pending' AND (expires_at IS NULL OR expires_at > statement_timestamp())
        AND published_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s) AS is_lost
    FROM task
    WHERE CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s)
      AND kind = %(kind)s AND priority = %(priority)s::task_priority
    ORDER BY CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END LIMIT %(limit)s + 200
), lost_queued AS MATERIALIZED (
    SELECT id FROM oldest
    WHERE is_lost AND (SELECT is_paused FROM queue WHERE name = oldest.queue) IS NOT true LIMIT %(limit)s
), lost_named AS (
    (SELECT queue FROM task
     WHERE finished_at IS NULL AND queue > '' AND kind = %(kind)s AND priority = %(priority)s::task_priority
       AND (SELECT count(*) FROM oldest) >= %(limit)s + 200 AND (SELECT count(*) FROM lost_queued) < %(limit)s
     ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT next.queue FROM lost_named, LATERAL (
        SELECT queue FROM task WHERE finished_at IS NULL AND queue > lost_named.queue AND kind = %(kind)s AND priority = %(priority)s::task_priority
        ORDER BY queue LIMIT 1
    ) AS next
), lost_hidden AS (
    SELECT due.id FROM lost_named, LATERAL (
        SELECT id FROM task
        WHERE finished_at IS NULL AND status = 'pending' AND queue = lost_named.queue AND kind = %(kind)s AND priority = %(priority)s::task_priority
          AND due_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s)
          AND published_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s)
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY due_at LIMIT %(limit)s
    ) AS due
    WHERE (SELECT is_paused FROM queue WHERE name = lost_named.queue) IS NOT true LIMIT %(limit)s
), published AS (
    UPDATE task SET published_at = clock_timestamp()
    WHERE id = ANY(ARRAY(
        SELECT id FROM task
        WHERE id = ANY(ARRAY(
            (SELECT id FROM (SELECT * FROM plain UNION SELECT * FROM open UNION SELECT * FROM hidden) AS unpublished
             ORDER BY due_at LIMIT %(limit)s)
            UNION ALL
            (SELECT id FROM (SELECT id FROM lost UNION SELECT id FROM lost_queued UNION SELECT id FROM lost_hidden) AS gone
             LIMIT %(limit)s)
        ))
          AND status = 'pending' AND due_at <= statement_timestamp()
          AND (published_at IS NULL
               OR published_at <= statement_timestamp() - make_interval(secs => %(lost_after_seconds)s))
        ORDER BY id FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
), later AS MATERIALIZED (
    SELECT due_at, (SELECT queue.is_paused FROM queue WHERE name = task.queue) IS true AS is_paused FROM task
    WHERE CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END > statement_timestamp()
      AND kind = %(kind)s AND priority = %(priority)s::task_priority
    ORDER BY CASE WHEN queue <> '' AND published_at IS NULL AND finished_at IS NULL THEN due_at END LIMIT 100
)
SELECT
    ARRAY(SELECT id::text FROM published),
    ARRAY(SELECT id::text FROM expired),
    extract(epoch FROM least(
        (SELECT due_at FROM task
         WHERE CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END > statement_timestamp()
           AND status = 'pending' AND queue = '' AND kind = %(kind)s AND priority = %(priority)s::task_priority
         ORDER BY CASE WHEN published_at IS NULL AND finished_at IS NULL THEN due_at END LIMIT 1),
        (SELECT coalesce(min(due_at) FILTER (WHERE NOT is_paused), CASE WHEN count(*) = 100 THEN max(due_at) END) FROM later),
        (SELECT expires_at FROM task
         WHERE CASE WHEN finished_at IS NULL THEN expires_at END > statement_timestamp()
           AND status = 'pending' AND kind = %(kind)s AND priority = %(priority)s::task_priority
         ORDER BY CASE WHEN finished_at IS NULL THEN expires_at END LIMIT 1)
    ) - statement_timestamp())::float8;

-- find_due_tasks --
-- No change: what a consumer may claim when there is no stream to tell it, of the kinds that it serves, each with its kind.
-- Queues are looked at as by publish_due_tasks.
WITH RECURSIVE lane AS MATERIALIZED (
    SELECT kind, priority FROM live_lane WHERE kind = ANY(%(kinds)s::text[])
), first AS MATERIALIZED (
    SELECT due.*, lane.kind, lane.priority FROM lane, LATERAL (
        SELECT id, queue, due_at,
            status = 'pending' AND (expires_at IS NULL OR expires_at > statement_timestamp()) AS is_due
        FROM task
        WHERE CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END <= statement_timestamp()
          AND task.kind = lane.kind AND task.priority = lane.priority
        ORDER BY CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END LIMIT %(limit)s + 200
    ) AS due
), open AS MATERIALIZED (
    SELECT id, kind, priority, due_at FROM (
        SELECT id, kind, priority, due_at, place,
            max(CASE WHEN place = 1 THEN coalesce(queue_room(queue), %(limit)s) END) OVER (PARTITION BY queue) AS room
        FROM (
            SELECT *, row_number() OVER (PARTITION BY queue ORDER BY priority, due_at) AS place FROM first WHERE is_due
        ) AS placed
    ) AS due
    WHERE place <= room
), blocked AS MATERIALIZED (
    SELECT kind, priority FROM lane
    WHERE (SELECT count(*) FROM first WHERE (first.kind, first.priority) = (lane.kind, lane.priority)) >= %(limit)s + 200
      AND (SELECT count(*) FROM open WHERE (open.kind, open.priority) = (lane.kind, lane.priority)) < %(limit)s
), named AS (
    SELECT blocked.kind, blocked.priority, next.queue FROM blocked, LATERAL (
        SELECT queue FROM task
        WHERE finished_at IS NULL AND queue > '' AND task.kind = blocked.kind AND task.priority = blocked.priority
        ORDER BY queue LIMIT 1
    ) AS next
    UNION ALL
    SELECT named.kind, named.priority, next.queue FROM named, LATERAL (
        SELECT queue FROM task
        WHERE finished_at IS NULL AND queue > named.queue AND task.kind = named.kind AND task.priority = named.priority
        ORDER BY queue LIMIT 1
    ) AS next
)
SELECT id, kind FROM (
    SELECT due.id, lane.kind, lane.priority, due.due_at FROM lane, LATERAL (
        SELECT id, due_at FROM task
        WHERE finished_at IS NULL AND status = 'pending'
          AND task.queue = '' AND task.kind = lane.kind AND task.priority = lane.priority
          AND due_at <= statement_timestamp() AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY due_at LIMIT %(limit)s
    ) AS due
    UNION
    SELECT id, kind, priority, due_at FROM open
    UNION
    SELECT due.id, named.kind, named.priority, due.due_at FROM named, LATERAL (
        SELECT id, due_at FROM task
        WHERE finished_at IS NULL AND status = 'pending'
          AND task.queue = named.queue AND task.kind = named.kind AND task.priority = named.priority
          AND due_at <= statement_timestamp() AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY due_at LIMIT least(%(limit)s, queue_room(named.queue))
    ) AS due
) AS due
ORDER BY priority, due_at LIMIT %(limit)s;

-- claim_tasks --
-- pending -> processing. No row for one that is somebody else's, not due or final by now, locked this instant, of a kind
-- that the worker does not serve, or in a queue that is paused or at its limit.
-- One that this worker holds already was claimed by a call whose answer was lost: it comes back with its attempt.
-- The lock on the worker's row keeps the rescuer from declaring it dead half way. It lets the lease be renewed: a commit may
-- wait for a standby for longer than the lease.
WITH holder AS (
    SELECT id, kinds FROM worker
    WHERE id = %(worker_id)s::uuid AND epoch = %(epoch)s::int AND lapsed_at IS NULL FOR KEY SHARE
), wanted AS (
    SELECT task.id, task.status, task.queue FROM task, holder
    WHERE task.id = ANY(%(ids)s::uuid[])
      AND holder.kinds @> ARRAY[task.kind]  -- not "kind = ANY": an index of all that waits must not look useful
      AND (task.status = 'pending' AND task.due_at <= statement_timestamp()
             AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
           OR task.status = 'processing' AND task.worker_id = holder.id)
    ORDER BY task.id FOR UPDATE OF task SKIP LOCKED
), open AS MATERIALIZED (
    SELECT name, lock_queue(name) AS room
    FROM (SELECT DISTINCT queue AS name FROM wanted WHERE queue <> '' AND status = 'pending' ORDER BY queue) AS queued
), admitted AS (
    SELECT id, status, queue <> '' AS is_limited FROM wanted WHERE queue = '' OR status = 'processing'
    UNION ALL
    SELECT started.id, started.status, room IS NOT NULL FROM open, LATERAL (
        SELECT id, status FROM wanted WHERE queue = open.name AND status = 'pending' ORDER BY id LIMIT open.room
    ) AS started
)
UPDATE task SET
    status = 'processing',
    worker_id = %(worker_id)s::uuid,
    attempt = task.attempt + CASE admitted.status WHEN 'pending' THEN 1 ELSE 0 END,
    started_at = NULL,
    updated_at = clock_timestamp()
FROM admitted WHERE task.id = admitted.id
RETURNING task.id, attempt, failures, max_attempts, content, traceparent,
    extract(epoch FROM clock_timestamp() - due_at)::float8, timeout_seconds, kind, priority, is_limited,
    retry_base_seconds, retry_max_seconds;

-- fail_unreadable_tasks --
-- pending | processing -> failed: what a worker claims, and can't be read. It is charged, though no handler has run: it would
-- be claimed for ever.
UPDATE task SET
    status = 'failed', worker_id = NULL, attempt = attempt + CASE status WHEN 'pending' THEN 1 ELSE 0 END,
    failures = failures + 1, updated_at = clock_timestamp(), finished_at = clock_timestamp(),
    error = jsonb_build_object('type', 'Unreadable', 'message', 'PostgreSQL can''t read it.',
        'attempt', attempt + CASE status WHEN 'pending' THEN 1 ELSE 0 END)
WHERE id IN (
    SELECT id FROM task
    WHERE id = ANY(%(ids)s::uuid[]) AND (status = 'pending' OR status = 'processing' AND worker_id = %(worker_id)s::uuid)
    ORDER BY id FOR UPDATE
);

-- unpublish_refused_tasks --
-- pending stays pending: a worker was told of tasks of kinds that it does not serve, or of queues that let none start. The
-- relay tells somebody when it is time.
UPDATE task SET published_at = NULL
WHERE id IN (
    SELECT task.id FROM task, worker
    WHERE task.id = ANY(%(ids)s::uuid[]) AND task.status = 'pending'
      AND worker.id = %(worker_id)s::uuid AND (task.kind <> ALL(worker.kinds) OR task.queue <> '')
    ORDER BY task.id FOR UPDATE OF task
)
RETURNING id;

-- keep_progress --
-- processing stays processing. No row when the attempt is no longer the current one. Until now updated_at was the claim.
UPDATE task SET
    progress = new.progress, started_at = coalesce(started_at, updated_at), updated_at = clock_timestamp()
FROM (
    SELECT * FROM unnest(%(ids)s::uuid[], %(attempts)s::int[], %(progresses)s::json[])
        AS new (id, attempt, progress) ORDER BY id
) AS new
WHERE task.id = new.id AND task.attempt = new.attempt AND task.status = 'processing';

-- complete_tasks --
-- processing -> completed. No row when the attempt is no longer the current one. The results come in the order of their
-- ids, and so are the rows locked. updated_at stays: it tells when the run started.
UPDATE task SET
    status = 'completed', worker_id = NULL, error = NULL, result = done.returned::json, finished_at = clock_timestamp()
FROM (
    SELECT * FROM unnest(%(ids)s::uuid[], %(attempts)s::int[], %(results)s::text[])
        AS done (id, attempt, returned) ORDER BY id
) AS done
WHERE task.id = done.id AND task.attempt = done.attempt AND task.status = 'processing'
RETURNING task.id;

-- finish_tasks --
-- processing -> failed | pending again, by the same rules. The run goes into the history, with the holder that the row had
-- before: that is what every part of a statement sees but the one that updates it.
WITH finished AS (
    UPDATE task SET
        status = result.status,
        worker_id = NULL,
        failures = failures + result.charge,
        error = result.error::jsonb,
        result = NULL,
        updated_at = clock_timestamp(),
        finished_at = CASE WHEN result.status <> 'pending' THEN clock_timestamp() END,
        due_at = CASE result.status
            WHEN 'pending' THEN clock_timestamp() + make_interval(secs => result.delay_seconds) ELSE due_at END,
        published_at = CASE WHEN result.status <> 'pending' THEN published_at END
    FROM (
        SELECT * FROM unnest(
            %(ids)s::uuid[], %(attempts)s::int[], %(statuses)s::task_status[], %(charges)s::int[],
            %(delays)s::float8[], %(errors)s::text[], %(tracebacks)s::text[]
        ) AS result (id, attempt, status, charge, delay_seconds, error, traceback) ORDER BY id
    ) AS result
    WHERE task.id = result.id AND task.attempt = result.attempt AND task.status = 'processing'
    RETURNING task.id, task.status, task.error, charge, traceback
), ended AS (
    INSERT INTO attempt (task_id, attempt, started_at, worker, outcome, error, traceback)
    SELECT held.id, attempt, coalesce(held.started_at, updated_at), name,
        CASE WHEN finished.status = 'failed' THEN 'failed' WHEN charge = 0 THEN 'released' ELSE 'retried'
            END::attempt_outcome, finished.error, traceback
    FROM finished JOIN task AS held ON held.id = finished.id LEFT JOIN worker ON worker.id = held.worker_id
    ON CONFLICT DO NOTHING
)
SELECT id FROM finished;

-- find_finished_tasks --
-- No change: those of the results that are in the table, whoever asks for the second time.
SELECT task.id FROM task
JOIN unnest(%(ids)s::uuid[], %(attempts)s::int[], %(statuses)s::task_status[]) AS result (id, attempt, status)
USING (id, attempt, status);

-- release_tasks --
-- processing -> pending: all that a worker still holds when it stops, or, of some ids, what it does not know to hold. Nobody
-- is charged. What is handed back again and again waits for longer each time.
WITH held AS (
    SELECT id, attempt, failures, worker_id, coalesce(started_at, updated_at) AS started FROM task
    WHERE finished_at IS NULL AND status = 'processing' AND worker_id = %(worker_id)s::uuid
      AND (%(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s::uuid[]))
    ORDER BY id FOR UPDATE
), ended AS (
    INSERT INTO attempt (task_id, attempt, started_at, worker, outcome)
    SELECT held.id, attempt, started, name, 'released'
    FROM held LEFT JOIN worker ON worker.id = held.worker_id
    ON CONFLICT DO NOTHING
)
UPDATE task SET
    status = 'pending', worker_id = NULL, updated_at = clock_timestamp(), published_at = NULL,
    due_at = clock_timestamp() + make_interval(secs => CASE
        WHEN held.attempt - held.failures > %(free)s::int
        THEN least(%(longest)s::float8, 2.0 ^ least(30, held.attempt - held.failures - %(free)s::int)) ELSE 0 END)
FROM held WHERE task.id = held.id
RETURNING task.id;

-- cancel_tasks --
-- pending | processing -> canceled, those of them that are asked for. With each, the worker that was running it, and its
-- content if that is wanted: those of many need not fit into memory.
WITH live AS (
    SELECT id, attempt, worker_id, coalesce(started_at, updated_at) AS started FROM task
    WHERE id = ANY(%(ids)s::uuid[]) AND status IN ('pending', 'processing')
      AND status = ANY(%(statuses)s::task_status[])
    ORDER BY id FOR UPDATE
), ended AS (
    INSERT INTO attempt (task_id, attempt, started_at, worker, outcome)
    SELECT live.id, attempt, started, name, 'canceled'
    FROM live LEFT JOIN worker ON worker.id = live.worker_id
    WHERE live.worker_id IS NOT NULL
    ON CONFLICT DO NOTHING
)
UPDATE task SET
    status = 'canceled', worker_id = NULL, updated_at = clock_timestamp(), finished_at = clock_timestamp(),
    canceled_at = clock_timestamp()
FROM live WHERE task.id = live.id
RETURNING task.id, CASE WHEN %(with_contents)s::bool THEN content ELSE '' END, status, created_at,
    greatest(updated_at, finished_at), error, nullif(kind, 'default'), nullif(priority, 'normal'), nullif(queue, ''),
    progress, result::text, NULL, timeout_seconds, expires_at, retry_of, retried_as, schedule, scheduled_for, unique_key,
    live.worker_id;

-- rescue_tasks --
-- processing -> pending | failed: what lapsed workers held. They are charged: a task that kills its worker must end.
WITH held AS (
    SELECT id, attempt, worker_id, coalesce(started_at, updated_at) AS started, failures + 1 >= max_attempts AS is_spent,
        jsonb_build_object('type', 'WorkerLost', 'message', 'The worker stopped answering.', 'attempt', attempt) AS error
    FROM task
    WHERE finished_at IS NULL AND status = 'processing' AND worker_id = ANY(%(worker_ids)s::uuid[])
    ORDER BY id LIMIT %(limit)s FOR UPDATE
), ended AS (
    INSERT INTO attempt (task_id, attempt, started_at, worker, outcome, error)
    SELECT held.id, attempt, started, name, 'lost', error
    FROM held LEFT JOIN worker ON worker.id = held.worker_id
    ON CONFLICT DO NOTHING
)
UPDATE task SET
    status = CASE WHEN is_spent THEN 'failed' ELSE 'pending' END::task_status,
    worker_id = NULL,
    failures = failures + 1,
    error = held.error,
    updated_at = clock_timestamp(),
    finished_at = CASE WHEN is_spent THEN clock_timestamp() END,
    due_at = CASE WHEN is_spent THEN due_at ELSE clock_timestamp() END,
    published_at = CASE WHEN is_spent THEN published_at END
FROM held WHERE task.id = held.id
RETURNING task.id, status;

-- delete_finished_tasks --
-- completed | failed | canceled -> (nothing), oldest first, a few at a time. Ids begin with the time of their creation,
-- in milliseconds, so this reads the old end of the primary key and needs no index of its own. Whoever made them may
-- have had a clock that is an hour fast.
WITH old AS (
    SELECT id FROM task
    WHERE finished_at < statement_timestamp() - make_interval(secs => %(retention_seconds)s)
      AND id < (lpad(to_hex(greatest(0, 1000 * (extract(epoch FROM statement_timestamp()) - %(retention_seconds)s + 3600)
          )::bigint), 12, '0') || repeat('0', 20))::uuid
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), ended AS (
    DELETE FROM attempt WHERE task_id IN (SELECT id FROM old)
)
DELETE FROM task WHERE id IN (SELECT id FROM old)
RETURNING id;

-- forget_keys --
-- The keys that are older than that, oldest first, a few at a time.
DELETE FROM idempotency_key WHERE key IN (
    SELECT key FROM idempotency_key
    WHERE created_at < statement_timestamp() - make_interval(secs => %(seconds)s)
    ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
RETURNING key;

-- get_tasks --
SELECT id, content, status, created_at, greatest(updated_at, finished_at), error,
    nullif(kind, 'default'), nullif(priority, 'normal'), nullif(queue, ''), progress, result::text,
    CASE WHEN status = 'pending' AND due_at > statement_timestamp() THEN due_at END, timeout_seconds, expires_at,
    retry_of, retried_as, schedule, scheduled_for, unique_key
FROM task WHERE id = ANY(%(ids)s::uuid[]);

-- get_attempts --
-- No change: the newest runs of a task, in their order. Of one that goes on, or has completed the task, the task itself
-- tells; all others are written down.
SELECT * FROM (
    SELECT attempt, started_at, ended_at, worker, outcome, error, traceback
    FROM attempt WHERE task_id = %(id)s::uuid
    UNION ALL
    SELECT attempt, coalesce(task.started_at, updated_at), finished_at, name,
        CASE status WHEN 'completed' THEN 'completed'::attempt_outcome END, NULL, NULL
    FROM task LEFT JOIN worker ON worker.id = worker_id
    WHERE task.id = %(id)s::uuid AND status IN ('processing', 'completed')
    ORDER BY attempt DESC LIMIT %(limit)s
) AS newest ORDER BY attempt;

-- find_tasks --
-- No change: one row for the tasks that pass a filter, newest first: their ids, whether there are no more, and the last
-- task that was looked at. `window` tasks are looked at along one path. Along an index in the order of ids that is a part
-- of the answer; along another one it is all or nothing, and the ids mean nothing unless there are no more.
-- Those that run are the first of their lanes, and the tally tells when all of them are found.
WITH running AS (
    SELECT sum(tasks) AS tasks FROM task_tally WHERE status = 'processing' AND %(path)s = 'processing'
), seen AS (
    (SELECT id, status, kind, queue, created_at, retried_as FROM task
     WHERE %(path)s = 'all' AND id < %(before)s::uuid AND id >= %(floor)s::uuid
     ORDER BY id DESC LIMIT %(window)s)
    UNION ALL
    (SELECT id, status, kind, queue, created_at, retried_as FROM task
     WHERE %(path)s IN ('failed', 'canceled')
       AND CASE WHEN canceled_at IS NOT NULL THEN 'canceled'
                WHEN finished_at IS NOT NULL AND error IS NOT NULL THEN 'failed' END = %(path)s
       AND CASE WHEN canceled_at IS NOT NULL OR finished_at IS NOT NULL AND error IS NOT NULL THEN id END < %(before)s::uuid
       AND CASE WHEN canceled_at IS NOT NULL OR finished_at IS NOT NULL AND error IS NOT NULL THEN id END >= %(floor)s::uuid
     ORDER BY CASE WHEN canceled_at IS NOT NULL OR finished_at IS NOT NULL AND error IS NOT NULL THEN id END DESC
     LIMIT %(window)s)
    UNION ALL
    (SELECT id, status, kind, queue, created_at, retried_as FROM task
     WHERE %(path)s = 'kind' AND CASE WHEN kind <> 'default' THEN kind END = %(kind)s::text
       AND CASE WHEN kind <> 'default' THEN id END < %(before)s::uuid
       AND CASE WHEN kind <> 'default' THEN id END >= %(floor)s::uuid
     ORDER BY CASE WHEN kind <> 'default' THEN id END DESC LIMIT %(window)s)
    UNION ALL
    (SELECT id, status, kind, queue, created_at, retried_as FROM task
     WHERE %(path)s = 'queue' AND CASE WHEN queue <> '' THEN queue END = %(queue)s::text
       AND CASE WHEN queue <> '' THEN id END < %(before)s::uuid
       AND CASE WHEN queue <> '' THEN id END >= %(floor)s::uuid
     ORDER BY CASE WHEN queue <> '' THEN id END DESC LIMIT %(window)s)
    UNION ALL
    (SELECT id, status, kind, queue, created_at, retried_as FROM (
        SELECT id, status, kind, queue, created_at, retried_as FROM task
        WHERE %(path)s IN ('live', 'processing') AND finished_at IS NULL
        ORDER BY task.kind, task.priority, task.queue, due_at LIMIT %(window)s
     ) AS live
     WHERE %(path)s = 'live' OR status = 'processing' LIMIT (SELECT coalesce(tasks, %(window)s) FROM running))
)
SELECT
    ARRAY(
        SELECT id::text FROM seen
        WHERE id < %(before)s::uuid AND id >= %(floor)s::uuid
          AND (%(statuses)s::task_status[] = '{}' OR status = ANY(%(statuses)s::task_status[]))
          AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
          AND (%(queue)s::text IS NULL OR queue = %(queue)s::text)
          AND (%(created_after)s::timestamptz IS NULL OR created_at > %(created_after)s::timestamptz)
          AND (%(created_before)s::timestamptz IS NULL OR created_at < %(created_before)s::timestamptz)
          AND (NOT %(is_unretried)s::bool OR retried_as IS NULL)
        ORDER BY seen.id DESC LIMIT %(limit)s
    ),
    CASE WHEN %(path)s = 'processing' THEN (SELECT count(*) FROM seen) >= (SELECT coalesce(tasks, 0) FROM running)
        ELSE (SELECT count(*) FROM seen) < %(window)s END,
    (SELECT id FROM seen ORDER BY id LIMIT 1);

-- register_worker --
-- Makes a worker, and remembers the kinds that it serves.
WITH served AS (
    INSERT INTO kind (name, max_attempts)
    SELECT name, max_attempts FROM unnest(%(kinds)s::text[], %(max_attempts)s::int[]) AS served (name, max_attempts)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET max_attempts = excluded.max_attempts, served_at = clock_timestamp()
)
INSERT INTO worker (id, name, expires_at, kinds)
VALUES (
    %(worker_id)s::uuid, %(name)s, clock_timestamp() + make_interval(secs => %(lease_seconds)s), %(kinds)s::text[]
)
ON CONFLICT (id) DO NOTHING;

-- get_secret --
-- No change: the random bytes that all processes share.
SELECT value FROM secret WHERE is_only;

-- find_kinds --
-- No change: those of the kinds that somebody serves, or has served.
SELECT name, max_attempts FROM kind WHERE name = ANY(%(kinds)s::text[]);

-- forget_kinds --
-- Those that nobody has served for so long, and of which no task is live. Those that somebody serves are noted once an hour.
WITH served AS (
    UPDATE kind SET served_at = statement_timestamp()
    WHERE name IN (SELECT unnest(kinds) FROM worker WHERE lapsed_at IS NULL)
      AND served_at < statement_timestamp() - interval '1 h'
    RETURNING name
)
DELETE FROM kind
WHERE served_at < statement_timestamp() - make_interval(secs => %(seconds)s)
  AND name NOT IN (SELECT name FROM served)
  AND NOT EXISTS (SELECT FROM task WHERE finished_at IS NULL AND task.kind = kind.name);

-- renew_lease --
-- No row when the worker was declared dead. A statement of its own: a lease must not wait for a lock on the tasks.
UPDATE worker SET expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
WHERE id = %(worker_id)s::uuid AND lapsed_at IS NULL
RETURNING id;

-- find_lost_tasks --
-- No change: which of the tasks that a worker runs are no longer its own.
SELECT running.id::text FROM unnest(%(ids)s::uuid[], %(attempts)s::int[]) AS running (id, attempt)
LEFT JOIN task ON task.id = running.id
WHERE (task.status, task.attempt, task.worker_id)
    IS DISTINCT FROM ('processing'::task_status, running.attempt, %(worker_id)s::uuid);

-- lapse_workers --
-- Declares dead whose lease ran out, except the worker that asks: it lives. One row: all the dead, the others, and the
-- seconds until the next lease of one of those could run out (NULL: nobody else is there). It waits for their claims that
-- are under way. If it had to wait for a lock it declares nobody dead: their renewals may wait for it too.
WITH other AS (
    SELECT id, lapsed_at, expires_at FROM worker WHERE id IS DISTINCT FROM %(worker_id)s::uuid
), lapsed AS (
    UPDATE worker SET lapsed_at = clock_timestamp() FROM other
    WHERE worker.id = other.id AND worker.lapsed_at IS NULL AND worker.expires_at < statement_timestamp()
      AND clock_timestamp() < statement_timestamp() + interval '1 s'
    RETURNING worker.id
)
SELECT
    ARRAY(SELECT id::text FROM lapsed UNION SELECT id::text FROM other WHERE lapsed_at IS NOT NULL),
    -- One that renewed its lease this very moment was not lapsed, so it lives.
    ARRAY(SELECT id::text FROM other WHERE lapsed_at IS NULL AND id NOT IN (SELECT id FROM lapsed)),
    (SELECT extract(epoch FROM min(expires_at) - statement_timestamp())::float8 FROM other
     WHERE lapsed_at IS NULL AND expires_at >= statement_timestamp());

-- begin_epoch --
-- Refuses the claims of earlier epochs that may still come, and waits for those that are under way. No row when the worker
-- was declared dead. A late repetition changes nothing. The commit does not wait for a standby: renewals would wait for it.
UPDATE worker SET epoch = greatest(epoch, %(epoch)s::int) WHERE id = %(worker_id)s::uuid AND lapsed_at IS NULL
RETURNING epoch, set_config('synchronous_commit', 'local', true);

-- retire_worker --
-- From here on it claims nothing: this waits for its claims that are under way, and refuses those that come later.
UPDATE worker SET lapsed_at = clock_timestamp() WHERE id = %(worker_id)s::uuid AND lapsed_at IS NULL;

-- forget_workers --
DELETE FROM worker WHERE id = ANY(%(worker_ids)s::uuid[]);

-- measure --
-- One row: how many tasks are in each status, the age in seconds of the oldest that could be claimed, and how many queues
-- are paused. Queues are looked at as by publish_due_tasks.
WITH RECURSIVE lane AS MATERIALIZED (
    SELECT kind, priority FROM live_lane
), first AS MATERIALIZED (
    SELECT lane.kind, lane.priority, due.queue, count(*) AS tasks, min(due.due_at) FILTER (WHERE due.status = 'pending') AS due_at
    FROM lane, LATERAL (
        SELECT queue, due_at, status FROM task
        WHERE CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END <= statement_timestamp()
          AND task.kind = lane.kind AND task.priority = lane.priority
        ORDER BY CASE WHEN queue <> '' AND finished_at IS NULL THEN due_at END LIMIT 500
    ) AS due
    GROUP BY lane.kind, lane.priority, due.queue
), open AS MATERIALIZED (
    SELECT kind, priority, due_at FROM first
    WHERE due_at IS NOT NULL AND (SELECT is_paused FROM queue WHERE name = first.queue) IS NOT true
), blocked AS MATERIALIZED (
    SELECT kind, priority FROM first
    WHERE NOT EXISTS (SELECT FROM open WHERE (open.kind, open.priority) = (first.kind, first.priority))
    GROUP BY kind, priority HAVING sum(tasks) >= 500
), named AS (
    SELECT blocked.kind, blocked.priority, next.queue FROM blocked, LATERAL (
        SELECT queue FROM task
        WHERE finished_at IS NULL AND queue > '' AND task.kind = blocked.kind AND task.priority = blocked.priority
        ORDER BY queue LIMIT 1
    ) AS next
    UNION ALL
    SELECT named.kind, named.priority, next.queue FROM named, LATERAL (
        SELECT queue FROM task
        WHERE finished_at IS NULL AND queue > named.queue AND task.kind = named.kind AND task.priority = named.priority
        ORDER BY queue LIMIT 1
    ) AS next
), named_first AS (
    SELECT kind, priority, '' AS queue FROM lane
    UNION ALL
    SELECT kind, priority, queue FROM named
    WHERE (SELECT is_paused FROM queue WHERE name = named.queue) IS NOT true
)
SELECT
    (SELECT coalesce(json_object_agg(status, tasks), '{}') FROM
        (SELECT status, sum(tasks) AS tasks FROM task_tally GROUP BY status) AS total),
    extract(epoch FROM statement_timestamp() - least(
        (SELECT min(due_at) FROM open),
        (SELECT min(due.due_at) FROM named_first, LATERAL (
            SELECT due_at FROM task
            WHERE finished_at IS NULL AND status = 'pending' AND task.queue = named_first.queue
              AND task.kind = named_first.kind AND task.priority = named_first.priority
              AND due_at <= statement_timestamp()
            ORDER BY due_at LIMIT 1
        ) AS due)
    ))::float8,
    (SELECT count(*) FROM queue WHERE is_paused AND name > '');

-- fold_tally --
-- The rows of a queue and a status become one, or none if their sum is 0. What is one already is left alone, and so is what
-- another fold has in hand.
WITH folded AS (
    DELETE FROM task_tally WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM task_tally
        WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM (SELECT ctid, tasks, count(*) OVER (PARTITION BY queue, status) AS parts FROM task_tally) AS part
            WHERE parts > 1 OR tasks = 0
        ))
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING queue, status, tasks
)
INSERT INTO task_tally (queue, status, tasks)
SELECT queue, status, sum(tasks) FROM folded GROUP BY queue, status HAVING sum(tasks) <> 0;

-- ping --
SELECT 1;
