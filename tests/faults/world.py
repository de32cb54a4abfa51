"""PostgreSQL, Redis and some services, with a proxy before each server: what the nemesis breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import redis

from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
from tasksvc.store.database import Database
from tasksvc.store.migrate import migrate
from tasksvc.testing.process import clean_environment, free_port
from tests.faults import audit, bad_handlers, handlers
from tests.faults.orders import NARROW_CONCURRENCY, NARROW_QUEUE
from tests.faults.proxy import Proxy
from tests.faults.wire import Wire, WireError
from tests.harness import ServiceProcess, query

LEASE_SECONDS = 2.0
GRACE_SECONDS = 1.0
WORKERS = 2
PREFIX = "chaos"
CANARY = "canary-in-the-password"
"""Part of the service's DATABASE_URL; PostgreSQL trusts it anyway. It must never be said."""

DISK_MEGABYTES = 256


class World:
    """Everything that a run needs, in one folder."""

    def __init__(
        self,
        folder: Path,
        services: int,
        *,
        clocks: Clocks | None = None,
    ) -> None:
        self.folder = folder
        self.clocks = clocks
        self.effects_path = folder / "effects.jsonl"
        self._services = services
        self._stack = ExitStack()
        self.wire: Wire | None = None
        """The network between the services and their servers, where there can be one."""
        self.has_disk = False
        """PostgreSQL has a small disk of its own, which can be filled."""

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self.disk = self._mount(stack)
            self.postgres = stack.enter_context(
                EmbeddedPostgres(self.disk, variables=self._clock("postgres"))
            )
            self.redis = stack.enter_context(
                EmbeddedRedis(
                    self.folder / "redis", persistent=True, variables=self._clock("redis")
                )
            )
            self._prepare_database()
            with contextlib.suppress(WireError):
                self.wire = stack.enter_context(Wire())
            where = parse_qs(urlsplit(self.postgres.url).query)
            path = f"{where['host'][0]}/.s.PGSQL.{where['port'][0]}"
            self.postgres_proxy = stack.enter_context(Proxy(path, self._listener()))
            self.redis_proxy = stack.enter_context(
                Proxy(str(self.redis.socket_path), self._listener())
            )
            self.services = [self._service(number) for number in range(1, self._services + 1)]
            for service in self.services:
                stack.callback(service.end)
                service.start()
            self.put(f"/queues/{NARROW_QUEUE}", {"concurrency": NARROW_CONCURRENCY})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def database_url(self) -> str:
        """Past the proxy, as a superuser: for the harness and the nemesis."""
        return urlsplit(self.postgres.url)._replace(path="/chaos").geturl()

    @property
    def redis_key(self) -> str:
        """The stream of the default lane; the others' begin with it."""
        return f"{PREFIX}:tasks"

    def streams(self, client: redis.Redis) -> list[str]:
        """The streams of all lanes."""
        return list(client.scan_iter(f"{self.redis_key}*", count=1000, _type="stream"))

    @contextmanager
    def redis_client(self) -> Iterator[redis.Redis]:
        """Past the proxy."""
        with redis.Redis.from_url(
            self.redis.url, decode_responses=True, socket_timeout=5, protocol=2
        ) as client:
            yield client

    def put(self, path: str, document: dict[str, object]) -> None:
        """Through the first service, while nothing is broken."""
        code, _, body = self.services[0].request(
            "PUT", path, json.dumps(document).encode(), {"Content-Type": "application/json"}
        )
        assert code in (200, 201), body

    def restart(self, service: ServiceProcess) -> None:
        """Starts it again if it is gone, without waiting until it is ready."""
        if service.process.poll() is not None:
            service.spawn()

    def log_lines(self) -> list[bytes]:
        """Those of the services' log files."""
        return [
            line
            for service in self.services
            for path in service.folder.glob("logs/*")
            for line in path.read_bytes().split(b"\n")
            if line
        ]

    def logs(self) -> str:
        """All that the services said."""
        return "".join(
            path.read_text("utf-8", "replace")
            for service in self.services
            for path in (*service.folder.glob("*.txt"), *service.folder.glob("logs/*"))
        )

    def _listener(self) -> socket.socket | None:
        return None if self.wire is None else self.wire.listener()

    def _prepare_database(self) -> None:
        # Not a superuser: limits of connections hold for it.
        query(self.postgres.url, "CREATE ROLE service LOGIN")
        query(self.postgres.url, "CREATE DATABASE chaos OWNER service")
        url = self.database_url.replace("postgres@", "service@", 1)
        asyncio.run(migrate(Database(url)))
        audit.install(self.database_url)
        query(self.database_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO service")
        query(self.database_url, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO service")

    def _service(self, number: int) -> ServiceProcess:
        folder = self.folder / f"service-{number}"
        folder.mkdir()
        env = clean_environment(
            DATABASE_URL=f"postgresql://service:{CANARY}@{self.postgres_proxy.host}:{self.postgres_proxy.port}/chaos",
            REDIS_URL=f"redis://{self.redis_proxy.host}:{self.redis_proxy.port}/0",
            TASKSVC_REDIS_PREFIX=PREFIX,
            PORT=free_port(),
            LOG_LEVEL="info",
            EFFECTS=self.effects_path,
            MUTANT=os.environ.get("MUTANT", ""),
            TASKSVC_HANDLERS=f"{handlers.__name__},{bad_handlers.__name__}",
            TASK_CONSUMER_WORKERS=WORKERS,
            # Where there are places enough, tasks start with their create; elsewhere by the stream.
            TASK_CONSUMER_CONCURRENCY=10 if number % 2 else 60,
            TASK_RETRY_BASE_SECONDS=0.2,
            TASK_RETRY_MAX_SECONDS=1,
            TASK_MAX_ATTEMPTS=50,  # deaths are many here, and are not what should end a task
            TASKSVC_LEASE_SECONDS=LEASE_SECONDS,
            TASKSVC_RELAY_SECONDS=0.3,
            TASKSVC_LOST_MARGIN_SECONDS=1,
            TASKSVC_GRACE_SECONDS=GRACE_SECONDS,
            TASKSVC_STATEMENT_TIMEOUT_SECONDS=LEASE_SECONDS / 2,  # as by default
            **(self.clocks.environment("service") if self.clocks else {}),
        )
        return ServiceProcess(folder, env, [sys.executable, "-m", "tests.faults.servant"])

    def _mount(self, stack: ExitStack) -> Path:
        disk = self.folder / "disk"
        disk.mkdir()
        disk.chmod(0o755)
        size = f"size={DISK_MEGABYTES}m,mode=755"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
        if os.geteuid() == 0 and shutil.which("mount"):
            mounted = subprocess.run(command, capture_output=True, check=False)
            if mounted.returncode == 0:
                self.has_disk = True
                stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
        return disk

    def _clock(self, whose: str) -> dict[str, str]:
        """The variables of a server whose clock can be moved."""
        return self.clocks.environment(whose) if self.clocks else {}


class Clocks:
    """Clocks that can be moved, by libfaketime: one for each kind of process."""

    LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for whose in ("service", "postgres", "redis"):
            self.move(whose, 0)

    @classmethod
    def library(cls) -> str | None:
        """Where libfaketime is; None when it is not installed."""
        found = (str(path) for each in cls.LIBRARIES for path in Path("/").glob(each[1:]))
        return next(found, None)

    def move(self, whose: str, seconds: int) -> None:
        """From now on its clock differs from the true one by so much."""
        path = self._path(whose)
        scratch = path.with_suffix(".new")
        scratch.write_text(f"{seconds:+d}")
        scratch.chmod(0o644)
        scratch.replace(path)

    def environment(self, whose: str) -> dict[str, str]:
        return {
            "LD_PRELOAD": self.library() or "",
            "FAKETIME_TIMESTAMP_FILE": str(self._path(whose)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # To libfaketime the deadline of a wait on a condition is by the moved clock, even where
            # it is by the monotonic one, and the wait is over at once: a thread that waits for
            # the GIL takes its mutex again and again, and the owner can't release it, for seconds.
            # With this every wait takes 5 milliseconds, like the interpreter's own.
            "FAKETIME_WAIT_MS": "5",
        }

    def _path(self, whose: str) -> Path:
        return self._folder / f"clock-{whose}"


def wipe(folder: Path) -> None:
    """Removes what is in the folder."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
