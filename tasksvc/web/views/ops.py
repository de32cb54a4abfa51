"""One function for each route of health and metrics."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs, web

from tasksvc import logs
from tasksvc.web.answers import Answer
from tasksvc.web.app_keys import HEALTH, METRICS, SERVICE


async def health(request: web.Request) -> Answer:
    """Whether it can serve, and what is wrong."""
    checks = request.app[HEALTH]
    document: dict[str, Any] = {"status": "ok"}
    if degraded := checks.degraded():
        document["degraded"] = degraded
    if problems := await checks.problems():
        document = {**document, "status": "unavailable", "problems": problems}
        return Answer(orjson.dumps(document), status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(orjson.dumps(document))


async def health_live(request: web.Request) -> Answer:
    """Whether its loops come round; if not, it had better be started again."""
    return _yes_or_no(request.app[HEALTH].is_live())


async def health_ready(request: web.Request) -> Answer:
    """Whether to send it requests."""
    return _yes_or_no(await request.app[HEALTH].is_ready())


async def metrics(request: web.Request) -> Answer:
    """All that is known now. What can't be asked now is left out, rather than told from memory."""
    await request.app[SERVICE].measure()
    request.app[METRICS].set_log_lines_dropped(logs.dropped_lines())
    body, headers = request.app[METRICS].render(request.headers.getall(hdrs.ACCEPT, []))
    return Answer(body, content_type=headers["Content-Type"])


def _yes_or_no(is_so: bool) -> Answer:
    if is_so:
        return Answer(b'{"status":"ok"}')
    return Answer(b'{"status":"unavailable"}', status=HTTPStatus.SERVICE_UNAVAILABLE)
