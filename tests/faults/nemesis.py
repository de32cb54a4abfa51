"""The faults of servers, services, networks and clocks, and what all faults have in common.

Those of clients and handlers are in `bad_clients.py` and `bad_handling.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import uuid
from collections.abc import Callable, Iterator
from fnmatch import fnmatch

import psycopg2
import redis

from tests.faults import bad_clients, bad_handling  # noqa: F401 - they add their own
from tests.faults.fault import FAULTS, Scene, fault
from tests.faults.proxy import Mode, Proxy
from tests.faults.world import LEASE_SECONDS, World, wipe
from tests.harness import query

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE usename = 'service'"
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'"
_CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'service'"


def chosen(patterns: str, world: World) -> list[str]:
    """The names that match one of the patterns (`redis,network.drop,*.freeze`) and can be done
    here. Raises ValueError when a pattern matches none."""
    names = [name for name in FAULTS if _is_possible(name, world)]
    found: list[str] = []
    for pattern in patterns.split(","):
        matching = [
            n for n in names if fnmatch(n, pattern) or n.startswith((f"{pattern}.", f"{pattern}_"))
        ]
        if not matching:
            raise ValueError(f"no fault matches {pattern!r}; there are: {', '.join(names)}")
        found += matching
    return sorted(set(found))


def _is_possible(name: str, world: World) -> bool:
    if name.startswith("clock."):
        return world.clocks is not None
    return name != "postgres.full_disk" or world.has_disk


def heal(world: World) -> None:
    """Whatever was broken is whole again; every service runs."""
    if world.wire is not None:
        world.wire.heal()
    for proxy in (world.postgres_proxy, world.redis_proxy):
        proxy.heal()
    for service in world.services:
        world.restart(service)


# The service.


@fault("service")
def kill(scene: Scene) -> None:
    victim = scene.random.choice(scene.world.services)
    victim.kill()
    scene.some_time()
    victim.spawn()


@fault("service")
def freeze(scene: Scene) -> None:
    """Longer than its lease: it comes back as a zombie."""
    victim = scene.random.choice(scene.world.services)
    os.kill(victim.process.pid, signal.SIGSTOP)
    scene.hold(LEASE_SECONDS * 1.5 + scene.random.uniform(0, 1))
    os.kill(victim.process.pid, signal.SIGCONT)


@fault("service")
def stop(scene: Scene) -> None:
    victim = scene.random.choice(scene.world.services)
    _stop(victim.stop, signal.SIGTERM)
    victim.spawn()


@fault("service")
def stop_twice(scene: Scene) -> None:
    victim = scene.random.choice(scene.world.services)
    victim.process.send_signal(signal.SIGTERM)
    scene.some_time(0, 0.3)
    _stop(victim.stop, signal.SIGTERM)
    victim.spawn()


def _stop(stop: Callable[[int, float], int], number: int) -> None:
    code = stop(number, 20)
    if code not in (0, -signal.SIGTERM):  # a process that is only just being born knows no handler
        raise AssertionError(f"SIGTERM ended the service with exit code {code}")


# Redis.


@contextlib.contextmanager
def _redis(scene: Scene) -> Iterator[redis.Redis]:
    with scene.world.redis_client() as client, contextlib.suppress(redis.RedisError):
        yield client


@fault("redis")
def flush(scene: Scene) -> None:
    with _redis(scene) as client:
        client.flushall()


@fault("redis")
def delete(scene: Scene) -> None:
    with _redis(scene) as client:
        client.delete(*scene.world.streams(client))


@fault("redis")
def destroy_group(scene: Scene) -> None:
    with _redis(scene) as client:
        for stream in scene.world.streams(client):
            client.xgroup_destroy(stream, "tasksvc")


@fault("redis")
def wrong_type(scene: Scene) -> None:
    with _redis(scene) as client:
        for stream in scene.world.streams(client):
            client.set(stream, "not a stream")


@fault("redis")
def trim(scene: Scene) -> None:
    with _redis(scene) as client:
        for stream in scene.world.streams(client):
            client.xtrim(stream, maxlen=0, approximate=False)


@fault("redis")
def junk(scene: Scene) -> None:
    with _redis(scene) as client:
        key = scene.world.redis_key
        client.xadd(key, {"unknown": "field"})
        client.xadd(key, {"id": "no uuid"})
        client.xadd(key, {"id": "x" * 100_000})
        client.xadd(key, {"id": str(uuid.uuid4())})


@fault("redis")
def duplicate(scene: Scene) -> None:
    with _redis(scene) as client:
        for stream in scene.world.streams(client):
            for _, fields in client.xrange(stream, count=50):
                client.xadd(stream, fields)


@fault("redis")
def kill_clients(scene: Scene) -> None:
    with _redis(scene) as client:
        for _ in range(scene.random.randint(2, 8)):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            scene.hold(0.2)


@fault("redis")
def pause(scene: Scene) -> None:
    with _redis(scene) as client:
        client.execute_command("CLIENT", "PAUSE", "2000", "WRITE")


@fault("redis")
def out_of_memory(scene: Scene) -> None:
    with _redis(scene) as client:
        client.config_set("maxmemory", "1")
        scene.some_time()
        client.config_set("maxmemory", "0")


@fault("redis")
def read_only(scene: Scene) -> None:
    with _redis(scene) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        scene.some_time()
        client.execute_command("REPLICAOF", "NO", "ONE")


@fault("redis")
def no_replicas(scene: Scene) -> None:
    with _redis(scene) as client:
        client.config_set("min-replicas-to-write", "1")
        scene.some_time()
        client.config_set("min-replicas-to-write", "0")


@fault("redis")
def password(scene: Scene) -> None:
    with _redis(scene) as client:
        client.config_set("requirepass", "secret")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        scene.some_time()
        client.config_set("requirepass", "")


@fault("redis")
def kill_and_keep(scene: Scene) -> None:
    scene.world.redis.kill()
    scene.some_time()
    scene.world.redis.start()


@fault("redis")
def kill_and_lose(scene: Scene) -> None:
    scene.world.redis.kill()
    wipe(scene.world.redis.home)
    scene.some_time()
    scene.world.redis.start()


@fault("redis")
def _freeze(scene: Scene) -> None:
    os.kill(scene.world.redis.pid, signal.SIGSTOP)
    scene.some_time(0.5, 4)
    os.kill(scene.world.redis.pid, signal.SIGCONT)


# PostgreSQL.


@fault("postgres")
def restart(scene: Scene) -> None:
    scene.world.postgres.stop()
    scene.some_time(0, 1)
    scene.world.postgres.start()


@fault("postgres")
def restart_immediately(scene: Scene) -> None:
    os.kill(scene.world.postgres.pid, signal.SIGQUIT)
    scene.hold(0.5)
    scene.world.postgres.stop()
    scene.world.postgres.start()


@fault("postgres")
def _kill(scene: Scene) -> None:
    scene.world.postgres.kill()
    scene.some_time(0, 1)
    scene.world.postgres.start()


@fault("postgres")
def freeze_backends(scene: Scene) -> None:
    pids = [pid for (pid,) in query(scene.world.database_url, _BACKENDS)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    scene.some_time(0.5, 3)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@fault("postgres")
def terminate(scene: Scene) -> None:
    _repeat(scene, _TERMINATE)


@fault("postgres")
def cancel(scene: Scene) -> None:
    _repeat(scene, _CANCEL)


def _repeat(scene: Scene, statement: str) -> None:
    for _ in range(scene.random.randint(3, 15)):
        query(scene.world.database_url, statement)
        scene.hold(0.1)


@fault("postgres")
def lock(scene: Scene) -> None:
    connection = psycopg2.connect(scene.world.database_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE task")
            scene.some_time(0.5, 3)
    finally:
        connection.close()


@fault("postgres")
def _read_only(scene: Scene) -> None:
    url = scene.world.database_url
    query(url, "ALTER ROLE service SET default_transaction_read_only = on")
    query(url, _TERMINATE)
    scene.some_time()
    query(url, "ALTER ROLE service RESET default_transaction_read_only")
    query(url, _TERMINATE)


@fault("postgres")
def out_of_connections(scene: Scene) -> None:
    url = scene.world.database_url
    query(url, "ALTER ROLE service CONNECTION LIMIT 0")
    query(url, _TERMINATE)
    scene.some_time()
    query(url, "ALTER ROLE service CONNECTION LIMIT -1")


@fault("postgres")
def full_disk(scene: Scene) -> None:
    ballast = scene.world.disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    scene.some_time(1, 3)
    ballast.unlink()
    # It gives up when it can't write its log, and is started again by its supervisor.
    scene.world.postgres.stop()
    scene.world.postgres.start()


# The network.


def _network(name: str, mode: Callable[[random.Random], Mode]) -> None:
    for whose in ("postgres", "redis"):

        def break_it(scene: Scene, whose: str = whose) -> None:
            proxy: Proxy = getattr(scene.world, f"{whose}_proxy")
            drawn = mode(scene.random)
            proxy.set(drawn)
            if drawn.refuse:
                proxy.cut(reset=True)
            scene.some_time(0.5, 3)
            proxy.heal()

        FAULTS[f"network.{name}_{whose}"] = break_it


_network("refuse", lambda chance: Mode(refuse=True))
_network("silence", lambda chance: Mode(silence=True))
_network("delay", lambda chance: Mode(delay_seconds=chance.choice([0.01, 0.1, 0.5])))
_network("trickle", lambda chance: Mode(piece_bytes=1))
_network("cut", lambda chance: Mode(cut_after_bytes=chance.randint(0, 2000)))
_network("lose_replies_of", lambda chance: Mode(swallow_replies=True))
_network("reset", lambda chance: Mode(cut_after_bytes=chance.randint(0, 500), reset=True))


@fault("network")
def half_close(scene: Scene) -> None:
    scene.random.choice([scene.world.postgres_proxy, scene.world.redis_proxy]).half_close()


_DROP_SECONDS = 26.0
"""Longer than any time limit of the service: the keepalive of its connections ends them after 25
seconds."""


def _drop(whose: str) -> None:
    def drop(scene: Scene) -> None:
        """Every packet is lost, without a word, and then none. Where the world has no network of
        its own the proxy keeps silent instead, and resets all connections at the end."""
        proxy: Proxy = getattr(scene.world, f"{whose}_proxy")
        seconds = _DROP_SECONDS + scene.random.uniform(0, 5)
        if scene.world.wire is None:
            proxy.set(Mode(silence=True))
            scene.hold(seconds)
            proxy.cut(reset=True)
            proxy.heal()
        else:
            scene.world.wire.drop(proxy.port)
            scene.hold(seconds)
            scene.world.wire.heal()

    FAULTS[f"network.drop_{whose}"] = drop


for _whose in ("postgres", "redis"):
    _drop(_whose)


# The clocks.


def _wait_out(world: World) -> None:
    """What a clock that was ahead has stamped lies in the future now. To bring it back is what an
    hour's waiting would do."""
    now = "clock_timestamp()"
    for table, columns in (("task", ("due_at", "published_at")), ("worker", ("expires_at",))):
        for column in columns:
            query(
                world.database_url,
                f"UPDATE {table} SET {column} = {now} WHERE {column} > {now} + interval '1 minute'",  # noqa: S608
            )


def _clock(whose: str) -> None:
    def move(scene: Scene) -> None:
        assert scene.world.clocks is not None
        scene.world.clocks.move(whose, scene.random.choice([-3600, 3600]))
        scene.some_time(1, 4)
        scene.world.clocks.move(whose, 0)
        if whose == "postgres":
            _wait_out(scene.world)

    FAULTS[f"clock.{whose}"] = move


for _whose in ("service", "postgres", "redis"):
    _clock(_whose)
