"""Real servers for every test: one PostgreSQL and one Redis for the session, a database and a key
prefix of its own for each test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psutil
import pytest
import redis
import structlog

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.metrics import Metrics
from tasksvc.services.tasks import TaskService
from tasksvc.settings import Settings
from tasksvc.store.database import Database
from tasksvc.store.migrate import migrate
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tasksvc.testing import process
from tasksvc.testing.process import clean_environment
from tests.harness import ServiceProcess, create_database, query
from tests.services import MakeServices, Services

_numbers = itertools.count(1)

# The same examples in every run: no test depends on luck. A machine under load has its time.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A service of one's own takes a second to start."""
    for item in items:
        if "start_service" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> None:
    """What is logged within the tests' own process. structlog would draw each traceback with all
    that is around it, which takes half a second."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(),
        ]
    )


_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 8_000_000_000
"""Of memory, for the servers of a few sessions at a time and all else."""


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For a server whose data need not last: in memory, where there is room. A database of 300
    files for each test is copied in an eighth of the time there."""
    free = min(
        psutil.virtual_memory().available, disk_usage(_MEMORY).free if _MEMORY.is_dir() else 0
    )
    if free < _ENOUGH_BYTES:
        yield tmp_path_factory.mktemp("postgres")
        return
    with TemporaryDirectory(dir=_MEMORY, prefix="tasksvc-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL. It keeps nothing for long, so it need not fsync."""
    options = {"fsync": "off", "max_connections": "200", "max_wal_size": "256MB"}
    with EmbeddedPostgres(server_folder, options=options) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the schema in it, to be copied."""
    name = "template_tasksvc"
    query(postgres.url, f"CREATE DATABASE {name}")
    asyncio.run(migrate(Database(database_named(postgres.url, name))))
    return name


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database of the test's own."""
    name = f"test_{next(_numbers)}"
    create_database(postgres.url, name, template)
    yield database_named(postgres.url, name)
    query(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_prefix() -> str:
    return f"test-{next(_numbers)}"


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of the test's own, to look and to break."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def environment(
    database_url: str, redis_server: EmbeddedRedis, redis_prefix: str, free_port: int
) -> dict[str, str]:
    """The variables of a service that is quick about everything."""
    return clean_environment(
        DATABASE_URL=database_url,
        REDIS_URL=redis_server.url,
        TASKSVC_REDIS_PREFIX=redis_prefix,
        PORT=free_port,
        TASK_SIMULATED_SECONDS=0,
        TASK_RETRY_BASE_SECONDS=0,
        TASKSVC_LEASE_SECONDS=2,
        TASKSVC_RELAY_SECONDS=0.2,
        TASKSVC_LOST_MARGIN_SECONDS=0.5,
        TASKSVC_GRACE_SECONDS=5,
    )


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same, for a service within the test."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.from_env()


@pytest.fixture
def free_port() -> int:
    return process.free_port()


@pytest.fixture
def start_service(
    environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts a service as a process, with what the test wants else; as often as it likes."""
    services: list[ServiceProcess] = []

    def start(**variables: object) -> ServiceProcess:
        folder = tmp_path / f"service-{len(services) + 1}"
        folder.mkdir()
        env = environment | {name: str(value) for name, value in variables.items()}
        if services and "PORT" not in variables:
            env["PORT"] = str(process.free_port())
        service = ServiceProcess(folder, env)
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        service.end()


@pytest.fixture
def service(start_service: Callable[..., ServiceProcess]) -> ServiceProcess:
    """A service as a process, whose tasks take no time."""
    return start_service()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("test")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[TaskStore]:
    store = TaskStore(Database(database_url))
    yield store
    await store.close()


@pytest.fixture
async def stream(redis_server: EmbeddedRedis, redis_prefix: str) -> AsyncIterator[TaskStream]:
    stream = TaskStream(
        redis_server.url, prefix=redis_prefix, readers=4, block_seconds=0.1, max_entries=10_000
    )
    await stream.open()
    yield stream
    await stream.close()


@pytest.fixture
async def make_services(
    store: TaskStore, stream: TaskStream, metrics: Metrics
) -> AsyncIterator[MakeServices]:
    """Makes services over the test's store and stream, as each process has its own."""
    made: list[Services] = []

    def make(**overrides: Any) -> Services:
        made.append(Services.over(store, stream, metrics, **overrides))
        return made[-1]

    yield make
    for services in made:
        await services.flush()


@pytest.fixture
def task_service(make_services: MakeServices) -> TaskService:
    return make_services().tasks


def database_named(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def shared_services(
    postgres: EmbeddedPostgres,
    template: str,
    redis_server: EmbeddedRedis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., ServiceProcess]]:
    """Services as processes for tests that only ask them: they neither stop one nor break what it
    stands on, and they count nothing that others could have counted too. The same variables give
    the same service."""
    services: dict[frozenset[tuple[str, object]], ServiceProcess] = {}

    def start(**variables: object) -> ServiceProcess:
        name = f"test_{next(_numbers)}"
        create_database(postgres.url, name, template)
        defaults: dict[str, object] = {
            "DATABASE_URL": database_named(postgres.url, name),
            "REDIS_URL": redis_server.url,
            "TASKSVC_REDIS_PREFIX": f"test-{next(_numbers)}",
            "PORT": process.free_port(),
            "TASK_SIMULATED_SECONDS": 0,
        }
        env = clean_environment(**(defaults | variables))
        service = ServiceProcess(tmp_path_factory.mktemp("shared"), env)
        service.start()
        return service

    def get(**variables: object) -> ServiceProcess:
        key = frozenset(variables.items())
        if key not in services:
            services[key] = start(**variables)
        return services[key]

    yield get
    for service in services.values():
        service.end()


@pytest.fixture
def shared_service(shared_services: Callable[..., ServiceProcess]) -> ServiceProcess:
    """The one whose tasks take no time."""
    return shared_services()
