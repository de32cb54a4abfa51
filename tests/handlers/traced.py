"""Handlers that return the trace context of their task, and log a line, in each way of running."""

from __future__ import annotations

from tasksvc import Context, SyncContext, handler


@handler("loop")
async def on_the_loop(content: str, ctx: Context) -> str | None:
    ctx.log.info("Traced", action="traced")
    return ctx.traceparent


@handler("thread")
def in_a_thread(content: str, ctx: SyncContext) -> str | None:
    ctx.log.info("Traced", action="traced")
    return ctx.traceparent


@handler("process", run_in="process")
def in_a_process(content: str, ctx: SyncContext) -> str | None:
    ctx.log.info("Traced", action="traced")
    return ctx.traceparent
