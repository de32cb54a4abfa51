"""One connection, as aiohttp speaks HTTP on it, with our limits around it.

What came with the head of a request is parsed in one piece; all limits here are those of a client
that sends slowly, too much, or does not read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, cast

import structlog
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from tasksvc.web.answers import X_REQUEST_ID
from tasksvc.web.problems import Problem
from tasksvc.web.unread import Unread

log = structlog.get_logger(__name__)

MAX_HEADERS = 64

_MAX_HEAD_BYTES = 16_384
"""Of all headers together."""

_MAX_QUEUED = 2
"""Requests that wait while one is answered. With more nothing is read; aiohttp would take 32, each
with its body."""

_GIVE_UP_SECONDS = 1.0
"""How long a search goes on for a client that has closed its side of the connection: it may still
read the answer, or be gone."""

_CLIENTS_OWN = (ConnectionError, HttpProcessingError, web.RequestPayloadError)
"""What comes of a client that goes away or does not speak HTTP: no error of ours."""

_UPGRADE = re.compile(rb"\r\n(?:U|u)pgrade:")

_NO_UPGRADE = b"\r\nX-grade:"
"""As long, so that no length is wrong, wherever it stands. In JSON it stands nowhere."""


_parse = RequestHandler.data_received


class Connection(RequestHandler):
    """Answers what never reaches `answer`, such as a header that is too long, like all else.

    `ends` says that nothing more is read: what has come is answered, and then it is closed.
    """

    __slots__ = (
        "_body",
        "_drained",
        "_head_bytes",
        "_is_counted",
        "_on_gone",
        "_unread",
        "ends",
        "runs_signals",
        "takes_upgrades",
    )

    def __init__(
        self,
        *args: Any,
        unread: Unread,
        runs_signals: bool = False,
        takes_upgrades: bool = False,
        **kwargs: Any,
    ) -> None:
        """`runs_signals`: each answer waits for the signals `on_response_prepare`.
        `takes_upgrades`: a view may make a WebSocket of a GET."""
        super().__init__(*args, **kwargs)
        self._max_msg_queue_size = _MAX_QUEUED
        self._unread = unread
        self._head_bytes = 0
        self._body: StreamReader | None = None
        self._drained: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], object] | None = None
        self.runs_signals = runs_signals
        self.takes_upgrades = takes_upgrades
        self.ends = False

    # What the server asks.

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of its head."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def idle_since(self) -> float:
        """A moment to compare with that of another."""
        return self._next_keepalive_close_time

    # What the client sends.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Each byte that the system does not take is noticed.
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(high=0)
        super().connection_made(transport)
        if self._task_handler is not None:
            self._task_handler.add_done_callback(self._ended)

    def data_received(self, data: bytes) -> None:
        if len(data) > _MAX_HEAD_BYTES:
            # In pieces, so that no head is much larger than it may be before that is noticed.
            for start in range(0, len(data), _MAX_HEAD_BYTES):
                self.data_received(data[start : start + _MAX_HEAD_BYTES])
            return
        if self._payload_parser is not None:
            _parse(self, data)  # frames of a WebSocket
            return
        if self.ends and data:
            return
        count = self._request_count
        if not count and b"pgrade" in data and not (self.takes_upgrades and data[:4] == b"GET "):
            # Whatever it asks for is declined. aiohttp would drop what came in the same piece.
            # Clients ask with their first request; to look at all costs half a microsecond.
            data = _UPGRADE.sub(_NO_UPGRADE, data)
        body = self._body
        is_body = body is not None and not body.is_eof()
        _parse(self, data)
        if self._request_count != count:
            message, payload = self._messages[-1]
            self._head_bytes = 0
            self._body = None if payload.is_eof() else payload
            if isinstance(message, _ErrInfo) or message.upgrade:
                self.ends = True  # where the next request begins is unknown
        elif not is_body:
            self._head_bytes += len(data)
            if self._head_bytes >= _MAX_HEAD_BYTES:
                self._refuse_head()

    def _refuse_head(self) -> None:
        self.ends = True
        error = LineTooLong(b"", _MAX_HEAD_BYTES)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._messages.append((_ErrInfo(status=status, exc=error, message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more, and may still read."""
        if self._payload_parser is not None:
            return False  # a WebSocket ends with its client
        self.ends = True
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("The body broke off."))
        if self._on_gone is not None:
            self._loop.call_later(_GIVE_UP_SECONDS, self._give_up)
        if not self._messages:
            self._close = True  # after the request that is being answered, if there is one
        return bool(self._messages) or (self._waiter is None and self._request_count > 0)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Closes a connection whose task was canceled by a handler: aiohttp would leave it open,
        and its client would get no answer."""
        if task.cancelled() and self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        task = self._task_handler
        if task is not None and not _has_begun(task):
            task.cancel()  # aiohttp expects that a connection lives until its task has begun
        if self.transport is not None:
            self._unread.remove(self.transport)
        super().connection_lost(exc)
        self._body = None
        self._wake()
        self._give_up()

    # What the client reads.

    def ends_with_this(self) -> bool:
        """Whether nothing comes after the request that is being answered."""
        return self.ends and not self._messages

    async def drained(self, size: int) -> None:
        """Waits until an answer of `size` bytes is sent, or the connection is lost. It raises
        nothing: an error would keep the answer, by its traceback, for as long as itself."""
        transport = self.transport
        if transport is None:
            return
        self._drained = self._loop.create_future()
        self._unread.add(transport, size)
        try:
            await self._drained
        finally:
            self._unread.remove(transport)
            self._drained = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:  # `drained` replaces it by the size of the whole answer
            self._unread.add(self.transport, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None:
            self._unread.remove(self.transport)
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What is done for the client.

    def when_gone(self, give_up: Callable[[], object] | None) -> None:
        """Calls `give_up` when the client is gone; None cancels that."""
        self._on_gone = give_up
        if self.transport is None:
            self._give_up()
        elif self.ends:
            self._loop.call_later(_GIVE_UP_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._on_gone is not None:
            self._on_gone()

    # What aiohttp can't answer.

    def handle_error(
        self,
        request: Any,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request is not None and request.writer.output_size:
            raise ConnectionError("The answer broke off.")  # a second head would be part of it
        request_id = uuid_utils.uuid4().hex
        if isinstance(exc, web.HTTPException):
            status = exc.status
        if status >= 500 and not isinstance(exc, _CLIENTS_OWN):
            log.error(
                "Request failed", action="request_failed", request_id=request_id, exc_info=exc
            )
        else:
            log.debug(
                "Rejected malformed request", action="refused", request_id=request_id, status=status
            )
        code = HTTPStatus(status)
        response = Problem(code, code.description or code.phrase, closes=True).response()
        response.headers[X_REQUEST_ID] = request_id
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        # What aiohttp meets while it reads on after the answer.
        error = kwargs.get("exc_info")
        if isinstance(error, _CLIENTS_OWN):
            error.__traceback__ = None  # or it and its request would keep each other
        else:
            super().log_exception(*args, **kwargs)


def _has_begun(task: asyncio.Task[None]) -> bool:
    return getcoroutinestate(cast(Coroutine[Any, Any, None], task.get_coro())) != CORO_CREATED
