"""Good tasks, and a check of each service's health, while a client or a handler misbehaves."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.faults.audit import FINAL
from tests.faults.fault import Scene
from tests.faults.handlers import PROCESS_KIND, THREAD_KIND
from tests.faults.history import Injection, Pulse
from tests.faults.waiting import Stopwatch
from tests.harness import ServiceProcess, query

PULSE_SECONDS = 2.5
"""A service that is not stopped answers `/health/live` within this time, whatever clients do."""

_SECONDS_BETWEEN = 0.2
_GIVEN_UP_SECONDS = 15.0
_END_SECONDS = 30.0

_WAYS = ("default", "default", THREAD_KIND)
"""Of the tasks that each service gets; and there is one in a process."""


@contextmanager
def neighbours(scene: Scene, name: str, pulse_seconds: float = PULSE_SECONDS) -> Iterator[None]:
    """What happens within must not hurt the tasks of others, nor stop a service."""
    started, over = time.time(), threading.Event()
    watches = [_Watch(service, over) for service in scene.world.services]
    for watch in watches:
        watch.start()
    try:
        ids = [
            create(scene, service, kind, seconds=scene.random.uniform(0.5, 3), is_good=True)
            for service in scene.world.services
            for kind in _WAYS
        ]
        ids.append(create(scene, scene.world.services[0], PROCESS_KIND, is_good=True))
        yield
        wait_until_ended(scene, [id for id in ids if id], _END_SECONDS)
    finally:
        over.set()
        for watch in watches:
            watch.join()
    longest = max(watch.longest for watch in watches)
    scene.seen.pulses.append(Pulse(name, longest, pulse_seconds))
    scene.seen.injections.append(Injection(name, started, time.time(), kills=False))


def create(
    scene: Scene, service: ServiceProcess, kind: str, *, attempts: int = 1, **orders: object
) -> str | None:
    """The id of a new task; None when it was not taken for a long time."""
    orders["key"] = f"beside-{scene.random.getrandbits(64):x}"
    options = {"kind": kind} if kind != "default" else {}
    body = {"content": json.dumps(orders), "max_attempts": attempts, **options}
    deadline = time.monotonic() + _GIVEN_UP_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            code, _, answer = service.request(
                "POST", "/task", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            if code == 201:
                return str(json.loads(answer)["id"])
            scene.seen.answers["create", code] += 1
            if code != 503:
                return None
            time.sleep(0.05)
            continue
        orders["key"] = f"beside-{scene.random.getrandbits(64):x}"  # its outcome is unknown
        body["content"] = json.dumps(orders)
    return None


def wait_until_ended(scene: Scene, ids: list[str], within_seconds: float) -> None:
    """Or for the time that it may take; the checker sees what never ends."""
    deadline = time.monotonic() + within_seconds
    statement = "SELECT count(*) FROM task WHERE id = ANY(%s::uuid[]) AND status::text = ANY(%s)"
    while time.monotonic() < deadline:
        if query(scene.world.database_url, statement, ids, sorted(FINAL)) == [(len(ids),)]:
            return
        time.sleep(0.05)


class _Watch(threading.Thread):
    """Asks one service for a sign of life, again and again."""

    def __init__(self, service: ServiceProcess, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._over = over
        self.longest = 0.0

    def run(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN):
            watch = Stopwatch([self._service.process.pid])
            is_alive = self._ask()
            self.longest = max(self.longest, watch.seconds() if is_alive else float("inf"))

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._service.port, timeout=_GIVEN_UP_SECONDS
        )
        try:
            connection.request("GET", "/health/live")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
