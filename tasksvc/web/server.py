"""aiohttp's server, with our limits and our shape for what it answers by itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from tasksvc.web.middlewares import HEADERS
from tasksvc.web.problems import Problem

log = structlog.get_logger(__name__)


class _RequestHandler(RequestHandler):
    """Answers what never reaches a route, such as a header that is too long, like all else."""

    def handle_error(
        self,
        request: Any,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        request_id = uuid4().hex
        if not isinstance(exc, HttpProcessingError) and status >= 500:
            log.error("Unexpected", action="request_failed", request_id=request_id, exc_info=exc)
        code = HTTPStatus(status)
        response = Problem(code, code.description or code.phrase).response()
        response.headers.update(HEADERS)
        response.headers["X-Request-ID"] = request_id
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _RequestHandler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application. Bodies come as they are sent: nothing is decompressed for a client."""

    def __init__(self, app: web.Application, *, keepalive_seconds: float) -> None:
        super().__init__(
            app,
            access_log=None,  # the middleware says it, with the request's id
            auto_decompress=False,
            keepalive_timeout=keepalive_seconds,
            shutdown_timeout=5.0,
        )

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            loop=server._loop,
            **server._kwargs,
        )
