"""The body of a request: JSON, whole, and not too large."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from tasksvc.web.answers import JSON
from tasksvc.web.app_keys import ARRIVING, LIMITS
from tasksvc.web.problems import Problem, unavailable

_UTF_8 = frozenset({"utf-8", "utf8"})


def read_json(request: web.Request) -> Awaitable[bytes | bytearray]:
    """Raises Problem for what is not JSON by its headers, too large, or does not arrive."""
    return _read_json(request, request.app[LIMITS].max_body_bytes, "TASKSVC_MAX_BODY_BYTES")


def read_batch(request: web.Request) -> Awaitable[bytes | bytearray]:
    """The same for a body with many tasks, which may be larger."""
    return _read_json(request, request.app[LIMITS].max_batch_bytes, "TASKSVC_MAX_BATCH_BYTES")


async def _read_json(request: web.Request, max_bytes: int, variable: str) -> bytes | bytearray:
    if request.headers.get(hdrs.CONTENT_TYPE) != JSON and not _is_json(request):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be {JSON} in UTF-8.",
            headers={"Accept-Post": JSON},
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "The body must not be compressed.",
            headers={hdrs.ACCEPT_ENCODING: "identity"},
        )
    try:
        if not request.content.is_eof():
            async with asyncio.timeout(request.app[LIMITS].body_timeout_seconds):
                return await _read_body(request, max_bytes)
        # It came with its head: a timer and a loop would cost more than the rest.
        body = request.content.read_nowait()
        if len(body) > max_bytes:
            raise web.HTTPRequestEntityTooLarge(max_bytes, len(body))
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.", closes=True
        ) from None
    except (ConnectionError, HttpProcessingError, web.RequestPayloadError):
        # The client went away half way, or sent malformed chunks.
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off.", closes=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than {max_bytes} bytes, which is the limit ({variable}).",
            closes=True,
        ) from None
    return body


async def _read_body(request: web.Request, max_bytes: int) -> bytearray:
    """The whole body. aiohttp's own `read` would keep it for as long as the request lives."""
    length = request.content_length
    if length is not None and length > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes, length)
    if hdrs.EXPECT in request.headers and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    arriving = request.app[ARRIVING]
    try:
        while data := await request.content.readany():
            body += data
            arriving.bytes += len(data)
            if len(body) > max_bytes:
                raise web.HTTPRequestEntityTooLarge(max_bytes, len(body))
            if arriving.is_full:
                raise unavailable("Too many bodies arrive at the same time.", closes=True)
    finally:
        arriving.bytes -= len(body)
    return body


def _is_json(request: web.Request) -> bool:
    """However it is written."""
    return request.content_type == JSON and (request.charset or "utf-8").lower() in _UTF_8
