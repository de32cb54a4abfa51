"""The service as a process that can be told to misbehave: `python -m tests.faults.servant`.

It is the whole real service, with a handler that writes down what it does, and, when asked:

- `FAILPOINT=after_claim` dies there with exit code 137, the first time it has something in hand
  (`FAILPOINT_AT=3`: the third time);
- `MUTANT=no_fence` lacks one of the guards that the checker has to notice the loss of.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any

import uvloop

from tasksvc import logs
from tasksvc.domain.task import Claim
from tasksvc.handlers import Handler
from tasksvc.serve import serve
from tasksvc.settings import Settings
from tasksvc.store.schedule_store import ScheduleStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.faults import mutants

DIED = 137

FAILPOINTS: dict[str, tuple[type, str]] = {
    "after_insert": (TaskStore, "insert_tasks"),
    "after_publication": (TaskStream, "publish"),
    "after_claim": (TaskStore, "claim_tasks"),
    "after_effect": (TaskStore, "finish_tasks"),  # before it, that is
    "after_finish": (TaskStore, "finish_tasks"),
    "before_acknowledgement": (TaskStream, "acknowledge"),
    "after_cancel": (TaskStore, "cancel_tasks"),
    "after_release": (TaskStore, "release_tasks"),
    "after_rescue": (TaskStore, "rescue_tasks"),
    "after_republication": (TaskStore, "publish_due_tasks"),
    "before_schedule": (ScheduleStore, "run_schedules"),
    "after_schedule": (ScheduleStore, "run_schedules"),
}
_BEFORE = {"after_effect", "before_acknowledgement", "before_schedule"}


def arm(name: str, at: int = 1) -> None:
    """The process dies when it comes to this step with something in hand."""
    owner, method = FAILPOINTS[name]
    original = getattr(owner, method)
    count = 0

    @functools.wraps(original)
    async def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if name in _BEFORE:
            count += 1
            if count >= at:
                os._exit(DIED)
        result = await original(*args, **kwargs)
        if result:
            count += 1
            if count >= at:
                os._exit(DIED)
        return result

    setattr(owner, method, armed)


def recording(path: str) -> Handler:
    """A handler that does what its content says, and appends its start and end to a file.

    The content is JSON: `seconds` to sleep (`then_seconds` in later attempts), `block` to hold the
    loop for so long, `raises` a message, `until` the attempt from which on it no longer raises,
    `ignores_cancel`, `exits`.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(event: str, claim: Claim) -> None:
        line = {
            "event": event,
            "id": claim.id,
            "attempt": claim.attempt,
            "pid": os.getpid(),
            "at": time.time(),
        }
        os.write(file, json.dumps(line).encode() + b"\n")  # one write: whole lines, even after -9

    async def handle(claim: Claim) -> None:
        orders = _orders(claim.content)
        write("start", claim)
        try:
            await _obey(orders, claim)
        except BaseException:
            write("stop", claim)
            raise
        write("end", claim)

    return handle


async def _obey(orders: dict[str, Any], claim: Claim) -> None:
    if orders.get("exits"):
        os._exit(DIED)
    if "block" in orders:
        time.sleep(orders["block"])  # noqa: ASYNC251 - a handler that stalls the loop
    seconds = orders.get("seconds", 0) if claim.attempt == 1 else orders.get("then_seconds", 0)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            if not orders.get("ignores_cancel"):
                raise
    if "raises" in orders and claim.attempt < orders.get("until", 1 << 30):
        raise RuntimeError(orders["raises"])


def _orders(content: str) -> dict[str, Any]:
    try:
        orders = json.loads(content)
    except ValueError:
        return {}
    return orders if isinstance(orders, dict) else {}


def main() -> None:
    if name := os.environ.get("MUTANT"):
        mutants.MUTANTS[name]()
    if name := os.environ.get("FAILPOINT"):
        arm(name, int(os.environ.get("FAILPOINT_AT", "1")))
    settings = Settings.from_env()
    run: Callable[..., None] = uvloop.run
    with logs.configured(settings.log_level, settings.log_file_path):
        run(serve(settings, recording(os.environ["EFFECTS"])))


if __name__ == "__main__":
    main()
