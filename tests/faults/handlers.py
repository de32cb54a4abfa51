"""What tasks do in the tests of faults: they obey their content, and write down what they did.

The content is JSON: `seconds` to sleep (`then_seconds` in later attempts), `block` to hold the loop
for so long, `raises` a message, `error` its class, `until` the attempt from which on it no longer
raises, `ignores_cancel`, `exits`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import select
import time
from typing import Any, Protocol

from tasksvc import Permanent, Retry, SyncContext, handler

DIED = 137

THREAD_KIND = "chaos-thread"
PROCESS_KIND = "chaos-process"


class Attempt(Protocol):
    """A claim, or the context of a handler."""

    @property
    def id(self) -> str: ...

    @property
    def attempt(self) -> int: ...


async def obey(content: str, run: Attempt) -> None:
    """Does what the content says, and appends its start and end to the file `EFFECTS`."""
    orders = _orders(content)
    note("start", run)
    try:
        await _sleep(orders, run)
        _raise(orders, run)
    except BaseException:
        note("stop", run)
        raise
    note("end", run)


def obey_sync(content: str, context: SyncContext) -> None:
    """The same, in a thread or a process."""
    orders = _orders(content)
    note("start", context)
    deadline = time.monotonic() + _seconds(orders, context)
    try:
        while time.monotonic() < deadline:
            if context.is_canceled:
                raise InterruptedError
            select.select([], [], [], 0.01)  # under libfaketime time.sleep raises EINVAL
        _raise(orders, context)
    except BaseException:
        note("stop", context)
        raise
    note("end", context)


@handler(THREAD_KIND, max_attempts=50)
def in_a_thread(content: str, context: SyncContext) -> None:
    obey_sync(content, context)


@handler(PROCESS_KIND, max_attempts=50, run_in="process")
def in_a_process(content: str, context: SyncContext) -> None:
    obey_sync(content, context)


@functools.cache
def _file() -> int:
    return os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(event: str, run: Attempt) -> None:
    """Writes down what a handler does: `start`, `end` or `stop`."""
    line = {
        "event": event,
        "id": run.id,
        "attempt": run.attempt,
        "pid": os.getpid(),
        "at": time.time(),
    }
    os.write(_file(), json.dumps(line).encode() + b"\n")  # one write: whole lines, even after -9


async def _sleep(orders: dict[str, Any], run: Attempt) -> None:
    if orders.get("exits"):
        os._exit(DIED)
    if "block" in orders:
        time.sleep(orders["block"])  # noqa: ASYNC251 - a handler that stalls the loop
    deadline = time.monotonic() + _seconds(orders, run)
    while (left := deadline - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            if not orders.get("ignores_cancel"):
                raise


def _seconds(orders: dict[str, Any], run: Attempt) -> float:
    seconds: float = orders.get("seconds" if run.attempt == 1 else "then_seconds", 0)
    return seconds


def _raise(orders: dict[str, Any], run: Attempt) -> None:
    if "raises" not in orders or run.attempt >= orders.get("until", 1 << 30):
        return
    match orders.get("error"):
        case "Permanent":
            raise Permanent(orders["raises"])
        case "Retry":
            raise Retry(orders["raises"], after_seconds=0.3)
        case _:
            raise RuntimeError(orders["raises"])


def _orders(content: str) -> dict[str, Any]:
    try:
        orders = json.loads(content)
    except ValueError:
        return {}
    return orders if isinstance(orders, dict) else {}
