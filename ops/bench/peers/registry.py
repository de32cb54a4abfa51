"""The peers: what each needs, how it is asked whether it is done, and what it guarantees."""

from __future__ import annotations

from dataclasses import dataclass

FASTAPI = ("fastapi", "uvicorn", "uvloop", "httptools")

NODE_NEEDS = ("node@^22.18", "bullmq@^6", "ioredis@^5", "graphile-worker@>=0.17 <1", "pg-boss@^12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    durable: str
    """What of an answered create outlives a power cut."""
    redis_loss: str
    killed_worker: str
    """What becomes of a task whose worker is ended by SIGKILL."""
    results: str
    fenced: str
    """Whether one who lost a task is kept from finishing it."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    name: str
    title: str
    package: str
    """Whose version is shown."""
    program: str
    """Its module, or its file below `node`."""
    runtime: str
    """`python` or `node`."""
    over_http: bool
    as_library: bool
    backlog: int
    """Tasks to drain for each second of a measure: about what it drains in one."""
    unfinished: str | tuple[tuple[str, str], ...]
    """A statement that is true while a task is unfinished; or Redis commands that count them."""
    settings: str
    guarantees: Guarantees
    needs: tuple[str, ...] = ()
    forget: str = ""
    """A statement that empties its database."""

    @property
    def has_database(self) -> bool:
        return isinstance(self.unfinished, str)


_AOF = "all but the last second (Redis with AOF, `everysec`)"
_COMMITTED = "yes (PostgreSQL, `fsync`)"

TASKSVC = Guarantees(
    durable=_COMMITTED,
    redis_loss="nothing is lost: what was published is published again",
    killed_worker="run again once its lease ends (10 s)",
    results="status, times and error, for ever or as long as set",
    fenced="yes, by attempt and worker",
    source="docs/reliability.md",
)

PEERS = (
    Peer(
        name="plain",
        title="plain form: FastAPI, Redis stream, asyncpg, SQLAlchemy",
        package="sqlalchemy",
        program="plain",
        runtime="python",
        needs=(*FASTAPI, "sqlalchemy[asyncio]", "asyncpg", "redis[hiredis]"),
        over_http=True,
        as_library=False,
        backlog=0,
        unfinished="SELECT EXISTS (SELECT FROM task WHERE status <> 'completed')",
        forget="TRUNCATE task",
        settings="pool of 20, 20 tasks at a time",
        guarantees=Guarantees(
            durable=_COMMITTED,
            redis_loss="its row stays, and nobody works it",
            killed_worker="stays `processing`, its entry unacknowledged: nobody claims it",
            results="status and times",
            fenced="no: by status alone",
            source="ops/bench/peers/plain.py",
        ),
    ),
    Peer(
        name="celery",
        title="Celery",
        package="celery",
        program="with_celery",
        runtime="python",
        needs=(*FASTAPI, "celery[redis]", "hiredis"),
        over_http=True,
        as_library=True,
        backlog=1_000,
        unfinished=(("LLEN", "celery"), ("HLEN", "unacked")),
        settings="solo pool, acks_late, reject_on_worker_lost, ignore_result, prefetch 128",
        guarantees=Guarantees(
            durable=_AOF,
            redis_loss="tasks are lost",
            killed_worker="run again after the visibility timeout (1 h)",
            results="no (`ignore_result`)",
            fenced="no",
            source="https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html",
        ),
    ),
    Peer(
        name="arq",
        title="arq",
        package="arq",
        program="with_arq",
        runtime="python",
        needs=(*FASTAPI, "arq"),
        over_http=True,
        as_library=True,
        backlog=1_000,
        unfinished=(("ZCARD", "arq:queue"),),
        settings="max_jobs 100, poll_delay 10 ms, keep_result 0, uvloop",
        guarantees=Guarantees(
            durable=_AOF,
            redis_loss="tasks are lost",
            killed_worker="run again once its mark expires (job_timeout and 10 s: 310 s)",
            results="no (`keep_result=0`; 1 h otherwise)",
            fenced="no",
            source="https://arq-docs.helpmanual.io/",
        ),
    ),
    Peer(
        name="saq",
        title="SAQ",
        package="saq",
        program="with_saq",
        runtime="python",
        needs=(*FASTAPI, "saq[redis,hiredis]"),
        over_http=True,
        as_library=True,
        backlog=2_500,
        unfinished=(("LLEN", "saq:default:queued"), ("LLEN", "saq:default:active")),
        settings="concurrency 10, retries 3, ttl -1, uvloop",
        guarantees=Guarantees(
            durable=_AOF,
            redis_loss="tasks are lost",
            killed_worker="swept, and run again: each minute, after its timeout (10 s)",
            results="no (`ttl=-1`; 10 min otherwise)",
            fenced="no",
            source="https://github.com/tobymao/saq/blob/master/docs/job.md",
        ),
    ),
    Peer(
        name="procrastinate",
        title="Procrastinate",
        package="procrastinate",
        program="with_procrastinate",
        runtime="python",
        needs=(*FASTAPI, "procrastinate", "psycopg[binary,pool]"),
        over_http=True,
        as_library=True,
        backlog=800,
        unfinished=(
            "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"
        ),
        forget="TRUNCATE procrastinate_jobs, procrastinate_events, procrastinate_periodic_defers",
        settings="PsycopgConnector (asynchronous, C), pool of 20, concurrency 20,"
        " delete_jobs successful, uvloop",
        guarantees=Guarantees(
            durable=_COMMITTED,
            redis_loss="needs none",
            killed_worker="stays `doing`; its docs show a periodic task that retries it",
            results="no (`delete_jobs`; status and events otherwise)",
            fenced="no: by status alone",
            source="https://procrastinate.readthedocs.io/en/stable/howto/production/retry_stalled_jobs.html",
        ),
    ),
    Peer(
        name="bullmq",
        title="BullMQ",
        package="bullmq",
        program="bullmq",
        runtime="node",
        over_http=False,
        as_library=True,
        backlog=20_000,
        unfinished=(("LLEN", "bull:bench:wait"), ("LLEN", "bull:bench:active")),
        settings="concurrency 100, removeOnComplete 0",
        guarantees=Guarantees(
            durable=_AOF,
            redis_loss="tasks are lost",
            killed_worker="stalled: run again after its lock (30 s), once",
            results="no (`removeOnComplete`; for ever otherwise)",
            fenced="yes, by the lock's token",
            source="https://docs.bullmq.io/guide/workers/stalled-jobs",
        ),
    ),
    Peer(
        name="graphile-worker",
        title="graphile-worker",
        package="graphile-worker",
        program="graphile_worker",
        runtime="node",
        over_http=False,
        as_library=True,
        backlog=40_000,
        unfinished="SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)",
        forget="TRUNCATE graphile_worker._private_jobs",
        settings="concurrentJobs 24, localQueue 500, completeJobBatchDelay 0",
        guarantees=Guarantees(
            durable=_COMMITTED,
            redis_loss="needs none",
            killed_worker="run again after 4 hours",
            results="no: a finished job is deleted",
            fenced="no: a batch is deleted by its ids",
            source="https://worker.graphile.org/docs/performance",
        ),
    ),
    Peer(
        name="pg-boss",
        title="pg-boss",
        package="pg-boss",
        program="pg_boss",
        runtime="node",
        over_http=False,
        as_library=True,
        backlog=10_000,
        unfinished="SELECT EXISTS (SELECT FROM pgboss.job WHERE name = 'bench'"
        " AND state < 'completed')",
        forget="DELETE FROM pgboss.job WHERE name = 'bench'",
        settings="batchSize 1000, burstWhenBatchFull, pollingIntervalSeconds 0.5",
        guarantees=Guarantees(
            durable=_COMMITTED,
            redis_loss="needs none",
            killed_worker="run again once it expires (15 min)",
            results="state and output, 7 days",
            fenced="yes, by attempt",
            source="https://github.com/timgit/pg-boss/blob/master/docs/api/workers.md",
        ),
    ),
)
