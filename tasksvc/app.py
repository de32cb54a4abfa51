"""The one place where everything meets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping

import structlog
from aiohttp import web

from tasksvc import __version__
from tasksvc.consumers.consumer import Consumer
from tasksvc.consumers.executor import Executor
from tasksvc.consumers.heartbeat import Heartbeat
from tasksvc.consumers.janitor import Janitor
from tasksvc.consumers.listener import Listener
from tasksvc.consumers.loop import Loop
from tasksvc.consumers.pool import ConsumerPool
from tasksvc.consumers.relay import Relay
from tasksvc.consumers.rescuer import Rescuer
from tasksvc.consumers.running import Running
from tasksvc.consumers.scheduler import Scheduler
from tasksvc.consumers.watchdog import Watchdog
from tasksvc.domain.errors import StreamUnavailable, Unavailable
from tasksvc.domain.retry import RetryPolicy
from tasksvc.domain.task import DEFAULT_KIND
from tasksvc.handlers import Handler, http
from tasksvc.handlers.http import HttpDelivery
from tasksvc.handlers.kinds import Declared, HandlersError, Kind, load
from tasksvc.handlers.running import Runners
from tasksvc.handlers.simulated import simulated
from tasksvc.metrics import Metrics
from tasksvc.queues import QueueService
from tasksvc.schedules import ScheduleService
from tasksvc.service import TaskService
from tasksvc.settings import Settings
from tasksvc.store.database import Database
from tasksvc.store.migrate import migrate
from tasksvc.store.queue_store import QueueStore
from tasksvc.store.schedule_store import ScheduleStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tasksvc.web import routes
from tasksvc.web.health import Health
from tasksvc.web.keys import HEALTH, LIMITS, METRICS, QUEUES, SCHEDULES, SERVICE
from tasksvc.web.limits import Limits

log = structlog.get_logger(__name__)

POOL = web.AppKey("pool", ConsumerPool)


def create_app(settings: Settings, handler: Handler | None = None) -> web.Application:
    """The whole service. `settings` has both URLs; `handler` is what tasks without a kind do.

    Raises HandlersError.
    """
    declared = load(settings.handlers)
    metrics = Metrics(__version__)
    database = open_database(settings)
    store = TaskStore(database)
    schedule_store = ScheduleStore(database)
    queue_store = QueueStore(database)
    delivery = _delivery(settings)
    if delivery is not None and http.KIND in declared:
        raise HandlersError(f"TASKSVC_HANDLERS: the kind {http.KIND!r} has a handler already.")
    attempts = {DEFAULT_KIND: None} | {kind: each.max_attempts for kind, each in declared.items()}
    if delivery is not None:
        attempts[http.KIND] = None
    stream = _stream(settings, attempts)
    service = _service(settings, store, stream, metrics, attempts)
    kinds = _kinds(settings, service, declared)
    kinds[DEFAULT_KIND] = Kind(handler or simulated(settings.simulated_seconds))
    if delivery is not None:
        kinds[http.KIND] = Kind(delivery)
    schedules = ScheduleService(schedule_store, service, metrics)
    queues = QueueService(queue_store, service)
    pool = _pool(settings, service, queues, schedules, stream, metrics, kinds)

    app = web.Application(client_max_size=settings.max_body_bytes)
    app[METRICS] = metrics
    app[SERVICE] = service
    app[QUEUES] = queues
    app[SCHEDULES] = schedules
    app[POOL] = pool
    app[HEALTH] = Health(service.ping, lambda: stream.is_up, pool.stalled)
    app[LIMITS] = Limits(settings.max_body_bytes, settings.body_timeout_seconds)
    app.add_routes([*(routes.TASKS if settings.http == "on" else []), *routes.OPS])

    async def life(app: web.Application) -> AsyncIterator[None]:
        # In this order up, and in the other down: who writes stops before what it writes to.
        await _until_migrated(database)
        await _open(stream)
        await pool.start()
        yield
        app[HEALTH].is_stopping = True
        await pool.stop()
        await service.flush()
        if delivery is not None:
            await delivery.close()
        await stream.close()
        await schedule_store.close()
        await queue_store.close()
        await store.close()

    app.cleanup_ctx.append(life)
    return app


def open_database(settings: Settings) -> Database:
    assert settings.database_url is not None
    return Database(
        settings.database_url, statement_timeout_seconds=settings.statement_timeout_seconds
    )


def _stream(settings: Settings, kinds: Iterable[str]) -> TaskStream:
    assert settings.redis_url is not None
    return TaskStream(
        settings.redis_url,
        prefix=settings.redis_prefix,
        readers=settings.workers + 1,
        # Together the consumers make about one blocked read a second.
        block_seconds=min(5.0, max(1.0, settings.workers)),
        max_entries=settings.stream_max_entries,
        kinds=kinds,
    )


def _service(
    settings: Settings,
    store: TaskStore,
    stream: TaskStream,
    metrics: Metrics,
    kinds: Mapping[str, int | None],
) -> TaskService:
    return TaskService(
        store,
        stream,
        metrics,
        max_attempts=settings.max_attempts,
        lease_seconds=settings.lease_seconds,
        lost_margin_seconds=settings.lost_margin_seconds,
        group_size=settings.group_size,
        max_waiting=settings.max_waiting,
        kinds=kinds,
    )


def _delivery(settings: Settings) -> HttpDelivery | None:
    """None where no host is allowed: the kind is not served then."""
    if not settings.http_allow:
        return None
    return HttpDelivery(
        settings.http_allow,
        allows_private=settings.http_allow_private,
        max_answer_bytes=settings.max_result_bytes,
    )


def _kinds(
    settings: Settings, service: TaskService, declared: Mapping[str, Declared]
) -> dict[str, Kind]:
    runners = Runners(service.report, threads=settings.threads, processes=settings.processes)
    return {kind: Kind.of(each, runners.handler_of(each)) for kind, each in declared.items()}


def _pool(
    settings: Settings,
    service: TaskService,
    queues: QueueService,
    schedules: ScheduleService,
    stream: TaskStream,
    metrics: Metrics,
    kinds: Mapping[str, Kind],
) -> ConsumerPool:
    retry = RetryPolicy(settings.retry_base_seconds, settings.retry_max_seconds)
    executor = Executor(kinds, retry, metrics, max_result_bytes=settings.max_result_bytes)
    running = Running()
    service.on_lost = running.stop
    consumers = [
        Consumer(number, settings.concurrency, service, stream, executor, running)
        for number in range(1, settings.workers + 1)
    ]
    relay = Loop(Relay(service, settings.relay_seconds))
    service.on_due_in = relay.wake_in
    scheduler = Loop(Scheduler(schedules))
    schedules.on_put = scheduler.wake
    duties = [
        relay,
        scheduler,
        Loop(Rescuer(service, settings.lease_seconds)),
        Loop(Janitor(service, queues, settings.retention_seconds, settings.key_seconds)),
    ]
    if consumers:
        duties += [
            Loop(Heartbeat(service, settings.heartbeat_seconds)),
            Loop(Listener(stream, running)),
        ]
    pool = ConsumerPool(
        service, stream, running, consumers, duties, grace_seconds=settings.grace_seconds
    )
    duties.append(Loop(Watchdog(pool.stalled, metrics)))
    return pool


async def _until_migrated(database: Database) -> None:
    """Waits for PostgreSQL as long as it takes: whoever starts both need not mind the order."""
    while True:
        try:
            await migrate(database)
            return
        except Unavailable:
            log.warning("Waits for PostgreSQL", action="waits_for_postgres")
            await asyncio.sleep(random.uniform(0.5, 1.0))


async def _open(stream: TaskStream) -> None:
    try:
        await stream.open()
    except StreamUnavailable:
        log.warning("Starts without Redis", action="starts_without_redis")
