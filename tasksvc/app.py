"""The one place where everything meets."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiohttp import web

from tasksvc import __version__
from tasksvc.background import ConsumerPool
from tasksvc.consumers.consumer import Consumer
from tasksvc.consumers.executor import Executor
from tasksvc.consumers.places import Places, share_out
from tasksvc.domain.errors import StoreRefuses, StreamUnavailable, Unavailable
from tasksvc.domain.retry import RetryPolicy
from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.duties.heartbeat import Heartbeat
from tasksvc.duties.janitor import Janitor
from tasksvc.duties.listener import Listener
from tasksvc.duties.loop_guard import LoopGuard
from tasksvc.duties.relay import Relay
from tasksvc.duties.rescuer import Rescuer
from tasksvc.duties.scheduler import Scheduler
from tasksvc.duties.watchdog import Watchdog
from tasksvc.handlers import Handler, http
from tasksvc.handlers.http import HttpDelivery
from tasksvc.handlers.kinds import Declared, HandlersError, Kind, load
from tasksvc.handlers.running import Runners
from tasksvc.handlers.simulated import simulated
from tasksvc.loop import Loop
from tasksvc.metrics import Metrics
from tasksvc.runs import Running
from tasksvc.services.cleanup import Cleanup
from tasksvc.services.publisher import Publisher
from tasksvc.services.queues import QueueService
from tasksvc.services.rescue import Rescue
from tasksvc.services.schedules import ScheduleService
from tasksvc.services.tasks import TaskService
from tasksvc.services.worker import WorkerService
from tasksvc.settings import Settings
from tasksvc.store.blocking import BlockingLease
from tasksvc.store.database import Database
from tasksvc.store.migrate import migrate
from tasksvc.store.queue_store import QueueStore
from tasksvc.store.schedule_store import ScheduleStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tasksvc.web import routes
from tasksvc.web.app_keys import ARRIVING, HEALTH, LIMITS, METRICS, QUEUES, SCHEDULES, SERVICE
from tasksvc.web.health import Health
from tasksvc.web.limits import Arriving, Limits

log = structlog.get_logger(__name__)

POOL = web.AppKey("pool", ConsumerPool)

_SAYS_EVERY_SECONDS = 10.0
"""Why the start waits for PostgreSQL."""


def load_handlers(settings: Settings) -> dict[str, Declared]:
    """Imports the handlers. Call it before anything is started that an error would leave behind,
    and outside the event loop: a module may use asyncio when it is imported.

    Modules in the current folder are found, as by `python -m`, unless Python runs with
    PYTHONSAFEPATH.

    Raises HandlersError.
    """
    folder = os.getcwd()
    if settings.handlers and not sys.flags.safe_path and folder not in sys.path:
        sys.path.insert(0, folder)
    declared = load(settings.handlers)
    if settings.http_allow and http.KIND in declared:
        raise HandlersError(f"TASKSVC_HANDLERS: the kind {http.KIND!r} has a handler already.")
    return declared


def create_app(
    settings: Settings,
    handler: Handler | None = None,
    declared: Mapping[str, Declared] | None = None,
) -> web.Application:
    """Makes the whole service. `settings` has both URLs, `handler` does the tasks without a kind,
    `declared` is what `load_handlers` found; None loads them here.

    Raises HandlersError.
    """
    if declared is None:
        declared = load_handlers(settings)
    metrics = Metrics(__version__)
    database = open_database(settings)
    delivery = _delivery(settings)
    attempts = {DEFAULT_KIND: None} | {kind: each.max_attempts for kind, each in declared.items()}
    if delivery is not None:
        attempts[http.KIND] = None
    ways = {each.run_in for each in declared.values()} - {"loop"}
    stream = _stream(settings, attempts, settings.workers and settings.workers + len(ways))
    services = _services(settings, database, stream, metrics, attempts)
    runners = Runners(
        services.worker.report,
        threads=settings.threads,
        processes=settings.processes,
        max_result_bytes=settings.max_result_bytes,
        on_thread_free=lambda: pool.wake(),
    )
    kinds = {kind: Kind.of(each, runners.handler_of(each)) for kind, each in declared.items()}
    kinds[DEFAULT_KIND] = Kind(handler or simulated(settings.simulated_seconds))
    if delivery is not None:
        kinds[http.KIND] = Kind(delivery)
    pool = _pool(settings, database, services, stream, metrics, kinds, runners)

    app = web.Application(client_max_size=settings.max_body_bytes)
    app[METRICS] = metrics
    app[SERVICE] = services.tasks
    app[QUEUES] = services.queues
    app[SCHEDULES] = services.schedules
    app[POOL] = pool
    app[HEALTH] = Health(services.tasks.ping, lambda: stream.is_up, pool.stalled, pool.failing)
    app[LIMITS] = Limits(
        max_body_bytes=settings.max_body_bytes,
        max_batch_bytes=settings.max_batch_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
        max_connections=settings.max_connections,
        write_timeout_seconds=settings.write_timeout_seconds,
        max_buffer_bytes=settings.max_buffer_bytes,
    )
    app[ARRIVING] = Arriving(settings.max_buffer_bytes)
    app.add_routes([*(routes.TASKS if settings.http == "on" else []), *routes.OPS])

    async def life(app: web.Application) -> AsyncIterator[None]:
        # In this order up, and in the other down: who writes stops before what it writes to.
        await _until_migrated(database)
        await _open(stream)
        await pool.start()
        yield
        app[HEALTH].is_stopping = True
        await pool.stop()
        await services.tasks.flush()
        await services.worker.flush()
        if delivery is not None:
            await delivery.close()
        await stream.close()
        await services.schedule_store.close()
        await services.queue_store.close()
        await services.store.close()

    app.cleanup_ctx.append(life)
    return app


def open_database(settings: Settings) -> Database:
    assert settings.database_url is not None
    return Database(
        settings.database_url,
        statement_timeout_seconds=settings.statement_timeout_seconds,
        schema=settings.database_schema,
    )


def _stream(settings: Settings, kinds: Iterable[str], consumers: int) -> TaskStream:
    assert settings.redis_url is not None
    return TaskStream(
        settings.redis_url,
        prefix=settings.redis_prefix,
        readers=consumers + 1,
        # Together the consumers make about one blocked read a second.
        block_seconds=min(5.0, max(1.0, consumers)),
        max_entries=settings.stream_max_entries,
        kinds=kinds,
    )


@dataclass(frozen=True)
class _Services:
    """The stores, and what can be done with what is in them."""

    store: TaskStore
    schedule_store: ScheduleStore
    queue_store: QueueStore
    publisher: Publisher
    worker: WorkerService
    rescue: Rescue
    tasks: TaskService
    schedules: ScheduleService
    queues: QueueService


def _services(
    settings: Settings,
    database: Database,
    stream: TaskStream,
    metrics: Metrics,
    kinds: Mapping[str, int | None],
) -> _Services:
    store = TaskStore(database)
    schedule_store = ScheduleStore(database)
    queue_store = QueueStore(database)
    publisher = Publisher(store, stream, metrics, lost_margin_seconds=settings.lost_margin_seconds)
    worker = WorkerService(
        store,
        stream,
        publisher,
        metrics,
        kinds,
        lease_seconds=settings.lease_seconds,
        group_size=settings.group_size,
        max_waiting=settings.max_waiting,
    )
    rescue = Rescue(store, stream, publisher, worker, metrics, lease_seconds=settings.lease_seconds)
    tasks = TaskService(
        store,
        stream,
        publisher,
        worker,
        metrics,
        kinds,
        max_attempts=settings.max_attempts,
        group_size=settings.group_size,
        max_waiting=settings.max_waiting,
    )
    return _Services(
        store,
        schedule_store,
        queue_store,
        publisher,
        worker,
        rescue,
        tasks,
        ScheduleService(schedule_store, tasks, metrics, max_waiting=settings.max_waiting),
        QueueService(queue_store, publisher, max_waiting=settings.max_waiting),
    )


def _delivery(settings: Settings) -> HttpDelivery | None:
    """None where no host is allowed: the kind is not served then. Raises HandlersError."""
    if not settings.http_allow:
        return None
    try:
        return HttpDelivery(
            settings.http_allow,
            allows_private=settings.http_allow_private,
            max_answer_bytes=settings.max_result_bytes,
        )
    except ValueError as error:
        raise HandlersError(f"TASKSVC_HTTP_ALLOW: {error}") from None


def _places(settings: Settings, kinds: Mapping[str, Kind], runners: Runners) -> Sequence[Places]:
    """Those of each consumer; none in a process that only accepts and serves."""
    if not settings.workers:
        return []
    totals = {
        "loop": settings.concurrency,
        "thread": settings.threads,
        "process": settings.processes,
    }
    ways = {name: (kind.run_in, kind.concurrency) for name, kind in kinds.items()}
    blocked = {"thread": lambda: runners.lingering_threads}
    return share_out(ways, totals, settings.workers, blocked=blocked)


def _pool(
    settings: Settings,
    database: Database,
    services: _Services,
    stream: TaskStream,
    metrics: Metrics,
    kinds: Mapping[str, Kind],
    runners: Runners,
) -> ConsumerPool:
    retry = RetryPolicy(settings.retry_base_seconds, settings.retry_max_seconds)
    executor = Executor(kinds, retry, metrics, max_result_bytes=settings.max_result_bytes)
    running = Running()
    services.worker.on_lost = running.stop
    consumers = [
        Consumer(number, own, services.worker, stream, executor, running)
        for number, own in enumerate(_places(settings, kinds, runners), 1)
    ]
    services.worker.starting_kinds = frozenset(
        name for name, kind in kinds.items() if kind.run_in == "loop" and kind.concurrency is None
    )
    relay = Loop(Relay(services.publisher, settings.relay_seconds))
    services.publisher.on_due_in = relay.wake_in
    scheduler = Loop(Scheduler(services.schedules))
    services.schedules.on_put = scheduler.wake
    cleanup = Cleanup(
        services.store,
        services.queue_store,
        retention_seconds=settings.retention_seconds,
        key_seconds=settings.key_seconds,
    )
    duties = [
        relay,
        scheduler,
        Loop(Rescuer(services.rescue, settings.lease_seconds)),
        Loop(Janitor(cleanup)),
    ]
    if consumers:
        duties += [
            Loop(Heartbeat(services.worker, settings.heartbeat_seconds)),
            Loop(Listener(stream, services.worker.stop_lost)),
        ]
    guard = LoopGuard(
        lambda: services.worker.id,
        BlockingLease(database, settings.lease_seconds).renew,
        metrics,
        renew_after_seconds=settings.heartbeat_seconds,
    )
    pool = ConsumerPool(
        services.worker,
        stream,
        running,
        consumers,
        duties,
        guard,
        grace_seconds=settings.grace_seconds,
    )
    services.worker.on_new = pool.reserve
    metrics.before_scrape(lambda: metrics.set_places(pool.places(), runners.lingering_threads))
    duties.append(Loop(Watchdog(pool.stalled, metrics)))
    return pool


async def _until_migrated(database: Database) -> None:
    """Waits for PostgreSQL as long as it takes: whoever starts both need not mind the order.

    Raises StoreRefuses and MigrationFailed: to wait would not help.
    """
    said_at = float("-inf")
    while True:
        try:
            await migrate(database)
            return
        except StoreRefuses:
            raise
        except Unavailable as error:
            if time.monotonic() - said_at >= _SAYS_EVERY_SECONDS:
                said_at = time.monotonic()
                reason = getattr(error, "reason", None)
                log.warning("Waits for PostgreSQL", action="waits_for_postgres", reason=reason)
            await asyncio.sleep(random.uniform(0.5, 1.0))


async def _open(stream: TaskStream) -> None:
    try:
        await stream.open()
    except StreamUnavailable:
        log.warning("Starts without Redis", action="starts_without_redis")
