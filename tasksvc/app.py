"""The one place where everything meets."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from tasksvc import __version__
from tasksvc.background import Background
from tasksvc.consumers.consumer import Consumer
from tasksvc.consumers.executor import Executor
from tasksvc.consumers.places import share_out
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
from tasksvc.handlers.kinds import HandlersError, HandlerSpec, KindConfig, load
from tasksvc.handlers.running import HandlerRunners
from tasksvc.handlers.simulated import simulated
from tasksvc.loop import Loop, WakeUp
from tasksvc.metrics import Metrics
from tasksvc.runs import RunRegistry
from tasksvc.services.cleanup import Cleanup
from tasksvc.services.direct_start import DirectStart
from tasksvc.services.publisher import Publisher
from tasksvc.services.queues import QueueService
from tasksvc.services.rescue import RescueService
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
from tasksvc.web.answering import shape_answers
from tasksvc.web.app_keys import ARRIVING, HEALTH, LIMITS, METRICS, QUEUES, SCHEDULES, SERVICE
from tasksvc.web.health import Health
from tasksvc.web.limits import Arriving, Limits

log = structlog.get_logger(__name__)

BACKGROUND = web.AppKey("background", Background)

_SAYS_EVERY_SECONDS = 10.0
"""Why the start waits for PostgreSQL."""


def load_handlers(settings: Settings) -> dict[str, HandlerSpec]:
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
    declared: Mapping[str, HandlerSpec] | None = None,
) -> web.Application:
    """Makes the whole service. `settings` has both URLs, `handler` does the tasks without a kind,
    `declared` is what `load_handlers` found; None loads them here.

    Raises HandlersError; so does the start of the application.
    """
    specs = load_handlers(settings) if declared is None else declared
    metrics = Metrics(__version__)

    async def life(app: web.Application) -> AsyncIterator[None]:
        # In this order up, and in the other down: a writer stops before what it writes to.
        kinds = _attempts_by_kind(settings, specs)
        async with (
            _stores(settings) as stores,
            _stream(settings, kinds, specs) as stream,
            _services(settings, stores, stream, metrics, kinds, specs) as services,
            _handlers(settings, services, specs, handler) as handlers,
            _background(settings, stores, stream, services, handlers, metrics) as background,
        ):
            app[SERVICE], app[QUEUES] = services.tasks, services.queues
            app[SCHEDULES], app[BACKGROUND] = services.schedules, background
            app[HEALTH] = Health(
                services.tasks.ping, lambda: stream.is_up, background.stalled, background.failing
            )
            await _until_migrated(stores.database)
            await _open(stream)
            await background.start()
            yield
            app[HEALTH].is_stopping = True

    app = web.Application(client_max_size=settings.max_body_bytes)
    app[METRICS] = metrics
    app[LIMITS] = _limits(settings)
    app[ARRIVING] = Arriving(settings.max_buffer_bytes)
    app.add_routes(routes.routes(routes.OPS))
    if settings.http == "on":
        app.add_routes(routes.routes(routes.TASKS))
    shape_answers(app)
    app.cleanup_ctx.append(life)
    return app


def open_database(settings: Settings) -> Database:
    assert settings.database_url is not None
    return Database(
        settings.database_url,
        statement_timeout_seconds=settings.statement_timeout_seconds,
        schema=settings.database_schema,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_body_bytes=settings.max_body_bytes,
        max_batch_bytes=settings.max_batch_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
        max_connections=settings.max_connections,
        write_timeout_seconds=settings.write_timeout_seconds,
        max_buffer_bytes=settings.max_buffer_bytes,
    )


def _attempts_by_kind(
    settings: Settings, specs: Mapping[str, HandlerSpec]
) -> dict[str, int | None]:
    """Returns the kinds that this process serves, each with its own max_attempts."""
    attempts = {DEFAULT_KIND: None} | {kind: each.max_attempts for kind, each in specs.items()}
    return attempts | ({http.KIND: None} if settings.http_allow else {})


def _direct_kinds(settings: Settings, specs: Mapping[str, HandlerSpec]) -> set[str]:
    """Returns the kinds whose tasks may start where they are created."""
    on_loop = {k for k, each in specs.items() if each.run_in == "loop" and each.concurrency is None}
    return on_loop | (_attempts_by_kind(settings, specs).keys() - specs.keys())


@dataclass(frozen=True)
class _Stores:
    database: Database
    tasks: TaskStore
    schedules: ScheduleStore
    queues: QueueStore


@asynccontextmanager
async def _stores(settings: Settings) -> AsyncIterator[_Stores]:
    database = open_database(settings)
    stores = _Stores(database, TaskStore(database), ScheduleStore(database), QueueStore(database))
    try:
        yield stores
    finally:
        for store in (stores.schedules, stores.queues, stores.tasks):
            await store.close()


@asynccontextmanager
async def _stream(
    settings: Settings, kinds: Iterable[str], specs: Mapping[str, HandlerSpec]
) -> AsyncIterator[TaskStream]:
    assert settings.redis_url is not None
    ways = {each.run_in for each in specs.values()} - {"loop"}
    consumers = settings.workers and settings.workers + len(ways)
    stream = TaskStream(
        settings.redis_url,
        prefix=settings.redis_prefix,
        readers=consumers + 1,
        # Together the consumers make about one blocked read a second.
        block_seconds=min(5.0, max(1.0, consumers)),
        max_entries=settings.stream_max_entries,
        kinds=kinds,
    )
    try:
        yield stream
    finally:
        await stream.close()


@dataclass(frozen=True)
class _Services:
    """What can be done, and what the background shares with it: its runs and its wake-ups."""

    runs: RunRegistry
    direct_start: DirectStart
    wake_relay: WakeUp
    wake_scheduler: WakeUp
    publisher: Publisher
    worker: WorkerService
    rescue: RescueService
    tasks: TaskService
    schedules: ScheduleService
    queues: QueueService


@asynccontextmanager
async def _services(
    settings: Settings,
    stores: _Stores,
    stream: TaskStream,
    metrics: Metrics,
    kinds: Mapping[str, int | None],
    specs: Mapping[str, HandlerSpec],
) -> AsyncIterator[_Services]:
    runs, wake_relay, wake_scheduler = RunRegistry(), WakeUp(settings.relay_seconds), WakeUp()
    direct_start = DirectStart(_direct_kinds(settings, specs))
    store, max_waiting = stores.tasks, settings.max_waiting
    publisher = Publisher(
        store,
        stream,
        metrics,
        lost_margin_seconds=settings.lost_margin_seconds,
        wake_relay_in=wake_relay.after,
    )
    worker = WorkerService(
        store,
        stream,
        publisher,
        metrics,
        kinds,
        stop_runs=runs.stop,
        direct_start=direct_start,
        lease_seconds=settings.lease_seconds,
        group_size=settings.group_size,
        max_waiting=max_waiting,
    )
    tasks = TaskService(
        store,
        stream,
        publisher,
        worker,
        metrics,
        kinds,
        max_attempts=settings.max_attempts,
        group_size=settings.group_size,
        max_waiting=max_waiting,
    )
    schedules = ScheduleService(
        stores.schedules,
        tasks,
        metrics,
        wake_scheduler=wake_scheduler.now,
        max_waiting=max_waiting,
    )
    try:
        yield _Services(
            runs,
            direct_start,
            wake_relay,
            wake_scheduler,
            publisher,
            worker,
            RescueService(
                store, stream, publisher, worker, metrics, lease_seconds=settings.lease_seconds
            ),
            tasks,
            schedules,
            QueueService(stores.queues, publisher, max_waiting=max_waiting),
        )
    finally:
        await tasks.flush()
        await worker.flush()


@dataclass(frozen=True)
class _Handlers:
    runners: HandlerRunners
    kinds: Mapping[str, KindConfig]


@asynccontextmanager
async def _handlers(
    settings: Settings,
    services: _Services,
    declared: Mapping[str, HandlerSpec],
    handler: Handler | None,
) -> AsyncIterator[_Handlers]:
    """Raises HandlersError."""
    runners = HandlerRunners(
        services.worker.report,
        threads=settings.threads,
        processes=settings.processes,
        max_result_bytes=settings.max_result_bytes,
    )
    kinds = {kind: KindConfig.of(each, runners.handler_of(each)) for kind, each in declared.items()}
    kinds[DEFAULT_KIND] = KindConfig(handler or simulated(settings.simulated_seconds))
    delivery = _delivery(settings)
    if delivery is not None:
        kinds[http.KIND] = KindConfig(delivery)
    try:
        yield _Handlers(runners, kinds)
    finally:
        if delivery is not None:
            await delivery.close()


def _delivery(settings: Settings) -> HttpDelivery | None:
    """Returns None where no host is allowed: the kind is not served then. Raises HandlersError."""
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


@asynccontextmanager
async def _background(
    settings: Settings,
    stores: _Stores,
    stream: TaskStream,
    services: _Services,
    handlers: _Handlers,
    metrics: Metrics,
) -> AsyncIterator[Background]:
    consumers = _consumers(settings, stream, services, handlers, metrics)
    duties = _duties(settings, stores, stream, services, serves=bool(consumers))
    guard = LoopGuard(
        lambda: services.worker.id,
        BlockingLease(stores.database, settings.lease_seconds).renew,
        metrics,
        renew_after_seconds=settings.heartbeat_seconds,
    )
    background = Background(
        services.worker,
        stream,
        services.runs,
        consumers,
        duties,
        guard,
        grace_seconds=settings.grace_seconds,
    )
    duties.append(Loop(Watchdog(background.stalled, metrics)))
    runners = handlers.runners
    runners.when_thread_free(background.wake)
    metrics.before_scrape(
        lambda: metrics.set_places(background.places(), runners.lingering_threads)
    )
    try:
        yield background
    finally:
        await background.stop()


def _consumers(
    settings: Settings,
    stream: TaskStream,
    services: _Services,
    handlers: _Handlers,
    metrics: Metrics,
) -> list[Consumer]:
    """Returns none for a process that only accepts and serves."""
    if not settings.workers:
        return []
    kinds, worker = handlers.kinds, services.worker
    retry = RetryPolicy(settings.retry_base_seconds, settings.retry_max_seconds)
    executor = Executor(kinds, retry, metrics, max_result_bytes=settings.max_result_bytes)
    places = share_out(
        {name: (kind.run_in, kind.concurrency) for name, kind in kinds.items()},
        {"loop": settings.concurrency, "thread": settings.threads, "process": settings.processes},
        settings.workers,
        blocked={"thread": lambda: handlers.runners.lingering_threads},
    )
    consumers = [
        Consumer(number, own, worker, stream, executor, services.runs)
        for number, own in enumerate(places, 1)
    ]
    for consumer in consumers:
        if consumer.places.run_in == "loop":
            services.direct_start.add(consumer.reserve)
    return consumers


def _duties(
    settings: Settings,
    stores: _Stores,
    stream: TaskStream,
    services: _Services,
    *,
    serves: bool,
) -> list[Loop]:
    cleanup = Cleanup(
        stores.tasks,
        stores.queues,
        retention_seconds=settings.retention_seconds,
        key_seconds=settings.key_seconds,
    )
    duties = [
        Loop(Relay(services.publisher, settings.relay_seconds), services.wake_relay),
        Loop(Scheduler(services.schedules), services.wake_scheduler),
        Loop(Rescuer(services.rescue, settings.lease_seconds)),
        Loop(Janitor(cleanup)),
    ]
    if serves:
        duties += [
            Loop(Heartbeat(services.worker, settings.heartbeat_seconds)),
            Loop(Listener(stream, services.worker.stop_lost)),
        ]
    return duties


async def _until_migrated(database: Database) -> None:
    """Waits for PostgreSQL as long as it takes: start order does not matter.

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
                log.warning("Waiting for PostgreSQL", action="waits_for_postgres", reason=reason)
            await asyncio.sleep(random.uniform(0.5, 1.0))


async def _open(stream: TaskStream) -> None:
    try:
        await stream.open()
    except StreamUnavailable:
        log.warning("Starting without Redis", action="starts_without_redis")
