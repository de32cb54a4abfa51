"""Clients that misbehave: slow, greedy, broken off, in masses, or on Redis's back."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress

import redis

from tests.faults.fault import FAULTS, Fault, Scene
from tests.faults.neighbours import neighbours
from tests.faults.world import PREFIX
from tests.harness import query

_BIG_QUEUE = "big"
_BIG_TASKS = 24
_BIG_BYTES = 200_000

_BODY_BYTES = 256 * 1024
_BATCH_BYTES = 5 * 1024 * 1024
"""The largest bodies that are taken: of a request, and of `POST /tasks`."""

_ANSWER_SECONDS = 30.0


def _client(bad: Fault) -> Fault:
    """A fault during which good tasks run and the service answers."""
    name = f"client.{bad.__name__}"

    def fault(scene: Scene) -> None:
        with neighbours(scene, name):
            bad(scene)

    FAULTS[name] = fault
    return fault


# Slow readers.


@_client
def reads_nothing(scene: Scene) -> None:
    with ExitStack() as stack:
        _ask(scene, stack, _get(_big_page(scene)), 20)
        scene.some_time(3, 6)


@_client
def reads_a_byte_a_second(scene: Scene) -> None:
    with ExitStack() as stack:
        sockets = _ask(scene, stack, _get(_big_page(scene)), 10)
        for _ in range(scene.random.randint(3, 6)):
            for each in sockets:
                each.settimeout(0.01)
                with suppress(OSError):
                    each.recv(1)
            scene.hold(1)


# Hostile bodies. All of them must be refused.


def _many(element: bytes) -> Callable[[random.Random, int], bytes]:
    def make(chance: random.Random, size: int) -> bytes:
        body = b",".join([element] * (size // (len(element) + 1) - 20))
        return b'{"tasks":[' + body + b"]}"

    return make


def _nested(opening: bytes, closing: bytes) -> Callable[[random.Random, int], bytes]:
    def make(chance: random.Random, size: int) -> bytes:
        depth = chance.choice([30, 200, 1000, 1100, size // (len(opening) + len(closing)) - 20])
        return b'{"tasks":[' + opening * depth + b"0" + closing * depth + b"]}"

    return make


def _unknown_keys(chance: random.Random, size: int) -> bytes:
    return json.dumps({f"k{number}": 0 for number in range(size // 15)}).encode()[:size]


def _escapes(chance: random.Random, size: int) -> bytes:
    return b'{"kind":"' + b"\\u0001" * (size // 6 - 20) + b'"}'


def _digits(chance: random.Random, size: int) -> bytes:
    return b'{"max_attempts":' + b"9" * (size - 40) + b"}"


def _late_mistake(chance: random.Random, size: int) -> bytes:
    return b'{"tasks":[' + b'{"content":"x","tags":1},' * 999 + b"{}]}"


def _cut_off(chance: random.Random, size: int) -> bytes:
    body = _many(b'{"content":"x"}')(chance, size)
    return body[: chance.randint(1, len(body) - 2)]


def _no_text(chance: random.Random, size: int) -> bytes:
    return b'{"kind":"' + chance.randbytes(2000) + b"\xff" * (size - 3000) + b'"}'


_SHAPES: dict[str, Callable[[random.Random, int], bytes]] = {
    "objects": _many(b"{}"),
    "numbers": _many(b"0"),
    "lists": _many(b"[]"),
    "unknown": _many(b'{"a":0}'),
    "wrong": _many(b'{"queue":"","priority":1,"delay_seconds":"x"}'),
    "long_floats": _many(b'{"delay_seconds":1e999}'),
    "deep_lists": _nested(b"[", b"]"),
    "deep_objects": _nested(b'{"a":', b"}"),
    "unknown_keys": _unknown_keys,
    "escapes": _escapes,
    "digits": _digits,
    "late_mistake": _late_mistake,
    "cut_off": _cut_off,
    "no_text": _no_text,
}


@_client
def oversized_bodies(scene: Scene) -> None:
    chance = scene.random
    for _ in range(6):
        with ExitStack() as stack:
            asked = []
            for _ in range(3):
                shape = chance.choice(list(_SHAPES))
                path = chance.choice(["/tasks", "/tasks", "/task", "/tasks/cancel"])
                limit = _BATCH_BYTES if path == "/tasks" else _BODY_BYTES
                size = chance.choice([_BODY_BYTES, limit, limit + 1000])
                request = _post(path, _SHAPES[shape](chance, size))
                asked += [(shape, each) for each in _ask(scene, stack, request, 1)]
            for shape, each in asked:
                _note(scene, f"body {shape}", each)


# What breaks off.


@_client
def breaks_off(scene: Scene) -> None:
    """Requests and answers are cut at random bytes, by an end or a reset."""
    chance = scene.random
    page = _big_page(scene)
    for _ in range(120):
        request = chance.choice(
            [
                _get(page),
                _get("/metrics"),
                _get("/queues"),
                _get("/schedules"),
                _post("/tasks", _many(b"{}")(chance, 20_000)),
                _create(chance),
            ]
        )
        with suppress(OSError), _connect(scene) as client:
            if chance.random() < 0.5:
                client.sendall(request[: chance.randint(0, len(request))])
            else:
                client.sendall(request)
                client.recv(chance.choice([1, 100, 5000]))
            if chance.random() < 0.5:
                _reset(client)


@_client
def sends_half_and_stays(scene: Scene) -> None:
    """With hundreds of idle connections."""
    chance = scene.random
    with ExitStack() as stack:
        for _ in range(200):
            _ask(scene, stack, b"", 1)
        for _ in range(80):
            request = chance.choice([_create(chance), _post("/tasks", b" " * 60_000)])
            half = request[: chance.randint(1, len(request) - 1)]
            long_head = b"GET /health HTTP/1.1\r\n" + b"X-Long: " + b"y" * chance.randint(1, 8000)
            _ask(scene, stack, chance.choice([half, long_head]), 1)
        scene.some_time(2, 5)


# Too many.


@_client
def expensive_searches(scene: Scene) -> None:
    paths = [f"/tasks?kind=none{scene.random.getrandbits(32)}&limit=100" for _ in range(5)]
    _storm(scene, "search", [*paths, "/tasks?status=failed&kind=none", "/tasks?queue=none"])


@_client
def metrics_storm(scene: Scene) -> None:
    _storm(scene, "ops", ["/metrics", "/metrics", "/health", "/health/ready", "/queues"])


def _storm(scene: Scene, what: str, paths: list[str]) -> None:
    """Many at a time; some are closed at once, the others want their answers."""
    for _ in range(3):
        with ExitStack() as stack:
            waiting = [
                each
                for _ in range(60)
                for each in _ask(scene, stack, _get(scene.random.choice(paths)), 1)
            ]
            for _ in range(60):
                with suppress(OSError), _connect(scene) as client:
                    client.sendall(_get(scene.random.choice(paths)))
            for each in waiting:
                _note(scene, what, each)


@_client
def false_messages(scene: Scene) -> None:
    """On the channel that announces canceled tasks. Every client of Redis may write there."""
    running = "SELECT id::text FROM task WHERE status = 'processing'"
    channel = f"{PREFIX}:canceled"
    with suppress(redis.RedisError), scene.world.redis_client() as client:
        for _ in range(15):
            junk = [str(uuid.UUID(int=scene.random.getrandbits(128))), "no id", "", "x" * 1_000_000]
            ids = [id for (id,) in query(scene.world.database_url, running)]
            for message in (*ids, ",".join(ids), json.dumps(ids), *junk, b"\xff\0"):
                client.publish(channel, message)
            scene.hold(0.2)


# How they speak.


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _create(chance: random.Random) -> bytes:
    content = json.dumps({"key": f"broken-off-{chance.getrandbits(64):x}"})
    return _post("/task", json.dumps({"content": content}).encode())


def _connect(scene: Scene) -> socket.socket:
    """With a small window, so that an answer stays with the service until it is read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(5)
    try:
        client.connect(("127.0.0.1", scene.random.choice(scene.world.services).port))
    except OSError:
        client.close()
        raise
    return client


def _ask(scene: Scene, stack: ExitStack, request: bytes, count: int) -> list[socket.socket]:
    """So many connections with this request, less those that the service refuses."""
    found = []
    for _ in range(count):
        with suppress(OSError):
            client = stack.enter_context(_connect(scene))
            if scene.random.random() < 0.5:
                stack.callback(_reset, client)
            found.append(client)
            client.sendall(request)
    return found


def _note(scene: Scene, what: str, client: socket.socket) -> None:
    """The status of the answer; 0 when the connection was closed or nothing came."""
    client.settimeout(_ANSWER_SECONDS)
    line = b""
    with suppress(OSError):
        while len(line) < 12 and (more := client.recv(12 - len(line))):
            line += more
    scene.seen.answers[what, int(line[9:12]) if line.startswith(b"HTTP/1.") else 0] += 1


def _reset(client: socket.socket) -> None:
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _big_page(scene: Scene) -> str:
    """The path of an answer of some megabytes."""
    found = query(
        scene.world.database_url, "SELECT count(*) FROM task WHERE queue = %s", _BIG_QUEUE
    )
    service = scene.world.services[0]
    deadline = time.monotonic() + _ANSWER_SECONDS
    for _ in range(_BIG_TASKS - found[0][0]):
        orders = {"key": f"big-{scene.random.getrandbits(64):x}", "pad": "x" * _BIG_BYTES}
        body = {"content": json.dumps(orders), "queue": _BIG_QUEUE}
        with suppress(OSError):
            service.request(
                "POST", "/task", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
        if time.monotonic() > deadline:
            break
    return f"/tasks?queue={_BIG_QUEUE}&limit=100"
