"""Some of each way to run."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Any

import structlog

from tasksvc import Context, Permanent, Retry, SyncContext, handler


@handler("greet", timeout_seconds=30, max_attempts=5)
async def greet(content: str, ctx: Context) -> dict[str, Any]:
    await ctx.progress(0.5, "half the way")
    return {"hello": content, "attempt": ctx.attempt, "pid": os.getpid()}


@handler("whereabouts-thread")
def in_a_thread(content: str, ctx: SyncContext) -> dict[str, Any]:
    ctx.progress(0.25, "in a thread")
    return {"pid": os.getpid(), "thread": threading.current_thread().name, "id": ctx.id}


@handler("whereabouts-process", run_in="process")
def in_a_process(content: str, ctx: SyncContext) -> dict[str, Any]:
    ctx.progress(0.75, "in a process")
    return {"pid": os.getpid(), "id": ctx.id, "attempt": ctx.attempt}


@handler("sleep")
async def sleep(content: str, ctx: Context) -> None:
    await asyncio.sleep(float(content))


@handler("sleep-thread")
def sleep_in_a_thread(content: str, ctx: SyncContext) -> str:
    until = time.monotonic() + float(content)
    while time.monotonic() < until:
        if ctx.is_canceled:
            return "canceled"
        time.sleep(0.01)
    return "slept"


@handler("stubborn-thread")
def sleep_all_the_same(content: str, ctx: SyncContext) -> None:
    time.sleep(float(content))


@handler("sleep-process", run_in="process")
def sleep_in_a_process(content: str, ctx: SyncContext) -> None:
    ctx.progress(0, str(os.getpid()))
    time.sleep(float(content))


@handler("left-process", run_in="process")
def time_that_is_left(content: str, ctx: SyncContext) -> float | None:
    return ctx.remaining_seconds


@handler("burn", run_in="process")
def burn(content: str, ctx: SyncContext) -> int:
    """Holds a core, and the interpreter."""
    until = time.monotonic() + float(content)
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
    return rounds


class Unheard(Exception):
    """Of a class that the service need not know."""


def talk(ctx: Context | SyncContext) -> None:
    """In every way to write a line."""
    ctx.log.info("By the context", number=1)
    structlog.get_logger("shop").info("By structlog", number=2)
    logging.getLogger("library").warning("By %s", "logging")
    try:
        raise Unheard("why")
    except Unheard:
        ctx.log.exception("With an error", value=object())


@handler("talk-loop")
async def talk_on_the_loop(content: str, ctx: Context) -> None:
    talk(ctx)


@handler("talk-thread")
def talk_in_a_thread(content: str, ctx: SyncContext) -> None:
    talk(ctx)


@handler("talk-process", run_in="process")
def talk_in_a_process(content: str, ctx: SyncContext) -> None:
    if content == "quietly":
        ctx.log.debug("Ours")
        logging.getLogger("library").debug("Not ours to tell")
        return
    talk(ctx)


@handler("fail", max_attempts=2)
async def fail(content: str, ctx: Context) -> None:
    match content:
        case "permanent":
            raise Permanent("no use")
        case "retry":
            raise Retry("busy", after_seconds=0)
        case _:
            raise Unheard(content)


@handler("fail-process", run_in="process", max_attempts=1)
def fail_in_a_process(content: str, ctx: SyncContext) -> Any:
    match content:
        case "permanent":
            raise Permanent("no use")
        case "exit":
            os._exit(7)
        case "unpicklable":
            return lambda: None
        case _:
            raise Unheard(content)


@handler("long-process", run_in="process")
def long_in_a_process(content: str, ctx: SyncContext) -> str:
    """As many characters as the content says, in a result and in a line of the log."""
    ctx.log.info("Long", value="y" * (int(content) // 10))
    return "x" * int(content)


@handler("forks-process", run_in="process")
def fork_in_a_process(content: str, ctx: SyncContext) -> None:
    """Leaves a process behind, and sleeps, returns or dies."""
    forked = os.fork()
    if forked == 0:
        time.sleep(60)
    ctx.progress(0.5, f"{os.getpid()} {forked}")
    if content == "dies":
        os._exit(3)
    time.sleep(float(content))
