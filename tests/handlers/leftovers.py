"""Handlers that leave something behind which an interpreter would wait for at its end."""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasksvc import Context, SyncContext, handler

KINDS = ("timed-out", "to-thread", "executor", "thread", "task", "process", "process-pool")

_SECONDS = 600

_THREADS = ThreadPoolExecutor(2)
_kept: list[Any] = []


def _say(what: str = "") -> None:
    print(f"left something{what}", flush=True)


def children(output: str) -> list[int]:
    """The processes that the handlers have left and that live."""
    pids = [int(pid) for pid in re.findall(r"left something: (\d+)", output)]
    return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@handler("timed-out", timeout_seconds=0.1)
async def timed_out(content: str, ctx: Context) -> None:
    _say()
    await asyncio.to_thread(time.sleep, _SECONDS)


@handler("to-thread")
async def to_thread(content: str, ctx: Context) -> None:
    _say()
    await asyncio.to_thread(time.sleep, _SECONDS)


@handler("executor")
def executor(content: str, ctx: SyncContext) -> None:
    _say()
    _THREADS.submit(time.sleep, _SECONDS).result()


@handler("thread")
async def thread(content: str, ctx: Context) -> None:
    threading.Thread(target=time.sleep, args=(_SECONDS,)).start()
    _say()


@handler("task")
async def task(content: str, ctx: Context) -> None:
    async def ignore_cancellation() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_SECONDS)

    _kept.append(asyncio.create_task(ignore_cancellation()))
    atexit.register(print, "registered for the end")
    _say()


@handler("process")
async def process(content: str, ctx: Context) -> None:
    child = multiprocessing.Process(target=time.sleep, args=(_SECONDS,))
    child.start()
    _say(f": {child.pid}")


@handler("process-pool")
def process_pool(content: str, ctx: SyncContext) -> None:
    pool = ProcessPoolExecutor(1)
    _say(f": {pool.submit(os.getpid).result()}")
    pool.submit(time.sleep, _SECONDS).result()


@handler("blocked")
async def blocked(content: str, ctx: Context) -> None:
    print("blocks the event loop", flush=True)
    time.sleep(_SECONDS)  # noqa: ASYNC251 - that is the fault


@handler("signal-a-fork")
async def signal_a_fork(content: str, ctx: Context) -> list[int | None]:
    codes = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(_SECONDS,))
        child.start()
        assert child.pid is not None
        os.kill(child.pid, number)
        await asyncio.to_thread(child.join)
        codes.append(child.exitcode)
    return codes
