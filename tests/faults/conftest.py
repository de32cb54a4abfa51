"""Servers that a test may break, and services that misbehave on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.testing.process import free_port
from tests.faults.proxy import Proxy
from tests.faults.world import World
from tests.harness import ServiceProcess

StartServant = Callable[..., ServiceProcess]


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "own-postgres") as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        yield server


@pytest.fixture
def postgres_proxy(own_postgres: EmbeddedPostgres) -> Iterator[Proxy]:
    """A proxy before the test's own PostgreSQL; `proxied(url)` of it goes to the service."""
    query = parse_qs(urlsplit(own_postgres.url).query)
    with Proxy(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}") as proxy:
        yield proxy


@pytest.fixture
def redis_proxy(own_redis: EmbeddedRedis) -> Iterator[Proxy]:
    with Proxy(str(own_redis.socket_path)) as proxy:
        yield proxy


@pytest.fixture
def effects_path(tmp_path: Path) -> Path:
    """Where every servant of the test writes what its handlers do."""
    return tmp_path / "effects.jsonl"


@pytest.fixture
def effects(effects_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What the handlers did, in the order of their writing."""

    def read() -> list[dict[str, Any]]:
        if not effects_path.exists():
            return []
        return [json.loads(line) for line in effects_path.read_text().splitlines()]

    return read


@pytest.fixture
def start_servant(
    environment: dict[str, str], tmp_path: Path, effects_path: Path
) -> Iterator[StartServant]:
    """Starts a servant with what the test wants else; `spawn=True` does not wait until it is
    ready."""
    servants: list[ServiceProcess] = []

    def start(*, spawn: bool = False, **variables: object) -> ServiceProcess:
        folder = tmp_path / f"servant-{len(servants) + 1}"
        folder.mkdir()
        env = environment | {"EFFECTS": str(effects_path), "PORT": str(free_port())}
        env |= {name: str(value) for name, value in variables.items()}
        servant = ServiceProcess(folder, env, [sys.executable, "-m", "tests.faults.servant"])
        servants.append(servant)
        servant.spawn() if spawn else servant.start()
        return servant

    yield start
    for servant in servants:
        servant.end()


def proxied_postgres(proxy: Proxy) -> str:
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


def proxied_redis(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Servers and two services for all trials of a session; each heals what it broke."""
    with World(tmp_path_factory.mktemp("world"), services=2) as world:
        yield world
