"""The kind `http`: a task is delivered by POST to a URL, so that its work may be written in any
language.

What it was given is sent as it is. Only to hosts that the operator allows, and to no address that
is not public, whatever the name resolves to and whenever: the addresses that were checked are the
ones that are connected to. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohappyeyeballs
import h11
import msgspec

from tasksvc.domain.retry import Permanent, Retry
from tasksvc.domain.task import Claim
from tasksvc.domain.trace import child_of
from tasksvc.handlers.addresses import Allowed, Target, WrongTarget, is_public
from tasksvc.handlers.answers import Answer, Body

KIND = "http"

_TIMEOUT_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 86_400.0

_READ_BYTES = 4096
"""At a time."""
_EVENTS_AT_ONCE = 50
"""A chunk may be a single byte, and takes as long as a large one."""
_MAX_HEAD_BYTES = 32_768
_MAX_INTERIM_ANSWERS = 10
"""Of `100 Continue` and the like, before the answer."""

_TRY_AGAIN = frozenset({408, 425, 429})
"""Of the 4xx: what may be different next time."""

_OURS = frozenset(
    {
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "http2-settings",
        "idempotency-key",
        "keep-alive",
        "tasksvc-attempt",
        "tasksvc-task-id",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""Headers that a task can't set, nor those of proxies. Some servers take `_` for `-`."""

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_MAX_HEADERS = 100


class NotDelivered(Exception):
    """The other side did not take it this time."""


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """What the content asks for."""

    url: str
    headers: dict[str, str] = {}
    body: msgspec.Raw = msgspec.Raw(b"null")


_decode_order = msgspec.json.Decoder(_Order).decode


class HttpDelivery:
    """A handler. `allowed` are host names, each with a port if it is not the usual one; one that
    begins with `*.` stands for every name below it."""

    def __init__(
        self, allowed: Sequence[str], *, allows_private: bool, max_answer_bytes: int
    ) -> None:
        """Raises ValueError when one of them is no host."""
        self._allowed = Allowed(allowed)
        self._allows_private = allows_private
        self._max_answer_bytes = max_answer_bytes
        self._tls: ssl.SSLContext | None = None

    async def __call__(self, claim: Claim) -> Any:
        """The answer, as JSON where it says that it is, or as text. One that can't be kept is cut,
        with a note.

        Raises Permanent, Retry and NotDelivered.
        """
        target, headers, body = self._order(claim.content)
        headers |= {
            "Host": target.authority,
            "Tasksvc-Task-Id": claim.id,
            "Tasksvc-Attempt": str(claim.attempt),
            "Idempotency-Key": claim.id,
            "User-Agent": "tasksvc",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        if claim.traceparent is not None and "traceparent" not in map(str.lower, headers):
            headers["traceparent"] = child_of(claim.traceparent)
        loop = asyncio.get_running_loop()
        # A task's own limit stops it from outside, which would leave aside an answer that began.
        seconds = (claim.timeout_seconds or _TIMEOUT_SECONDS) * 0.95
        deadline = loop.time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    reader, writer = await self._connect(target)
        except TimeoutError:
            raise NotDelivered("The host can't be reached: it does not answer.") from None
        try:
            return await self._exchange(reader, writer, target, headers, body, deadline)
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        """Nothing stays open between two tasks."""

    def _order(self, content: str) -> tuple[Target, dict[str, str], bytes]:
        """What the content asks for: `{"url": …, "headers": {…}, "body": …}`."""
        try:
            order = _decode_order(content)
            body = bytes(order.body)
            if body.startswith(b'"'):
                body = msgspec.json.decode(body, type=str).encode()
        except msgspec.ValidationError as error:
            raise Permanent(f"The content is not an order: {error}.") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise Permanent("The content is not JSON.") from None
        try:
            target = Target.of(order.url)
        except WrongTarget as error:
            raise Permanent(str(error)) from None
        if target not in self._allowed:
            raise Permanent("The host is not allowed.")
        defaults = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"}
        return target, defaults | _headers(order.headers), body

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own: the other side may close one that is kept alive just when a
        task is sent, and it would be unknown whether it arrived."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM
            )
        except OSError:
            raise NotDelivered("The host can't be reached: its name has no address.") from None
        if not self._allows_private and not all(is_public(str(each[4][0])) for each in found):
            raise Permanent("The host's address is not allowed.")
        tls: dict[str, Any] = {}
        if target.is_https:
            if self._tls is None:  # it reads a file of certificates
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            tls = {"ssl": self._tls, "server_hostname": target.host}
        try:
            connected = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=0.25)
            try:
                return await asyncio.open_connection(sock=connected, limit=_READ_BYTES, **tls)
            except BaseException:
                connected.close()
                raise
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(f"Its certificate is refused: {error.verify_message}.") from None
        except OSError as error:  # its text names the address
            raise NotDelivered(f"The host can't be reached: {type(error).__name__}.") from None

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: Target,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
    ) -> Any:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        answer: Answer | None = None
        try:
            async with asyncio.timeout_at(deadline):
                request = h11.Request(
                    method="POST", target=target.path, headers=list(headers.items())
                )
                parts = (request, h11.Data(body), h11.EndOfMessage())
                # Without waiting until it is gone: it may be answered before.
                writer.write(b"".join(parser.send(part) or b"" for part in parts))
                head = await _head(parser, reader)
                _check(head.status_code, _named(head, "retry-after"))
                answer = self._answer(head)
                await _read(parser, reader, answer.body)
        except (OSError, h11.RemoteProtocolError, EOFError, TimeoutError) as error:
            if answer is None:
                raise NotDelivered(
                    f"The host gave no valid answer: {type(error).__name__}."
                ) from None
            answer.note("It ended too early.")  # the other side has taken the task all the same
        return answer.result()

    def _answer(self, head: h11.Response) -> Answer:
        body = Body(_named(head, "content-encoding") or "", self._max_answer_bytes)
        return Answer(
            head.status_code, _named(head, "content-type") or "", body, self._max_answer_bytes
        )


async def _head(parser: h11.Connection, reader: asyncio.StreamReader) -> h11.Response:
    """The head of the answer. Raises RemoteProtocolError, EOFError, and what reading raises."""
    interim = 0
    while True:
        match await _event(parser, reader):
            case h11.Response() as head:
                return head
            case h11.InformationalResponse():
                interim += 1
                if interim > _MAX_INTERIM_ANSWERS:
                    raise NotDelivered("The host gave too many interim answers.")
            case _:
                raise EOFError


async def _read(parser: h11.Connection, reader: asyncio.StreamReader, body: Body) -> None:
    """Reads the body, as much of it as is kept."""
    for count in itertools.count(1):
        if body.is_full:
            return
        if count % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        match await _event(parser, reader):
            case h11.Data(data=data):
                body.feed(bytes(data))
            case h11.EndOfMessage():
                body.end()
                return
            case _:
                raise EOFError


async def _event(parser: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while True:
        event = parser.next_event()
        if event is not h11.NEED_DATA:
            return event
        await asyncio.sleep(0)  # reading does not wait while there is something
        parser.receive_data(await reader.read(_READ_BYTES))


def _named(head: h11.Response, name: str) -> str | None:
    for each, value in head.headers:
        if each == name.encode():
            return value.decode("latin-1")
    return None


def _check(status: int, retry_after: str | None) -> None:
    """Raises what a status means that is not 2xx."""
    if 200 <= status < 300:
        return
    if status in _TRY_AGAIN or status >= 500:
        after = _retry_after(retry_after)
        if after is not None:
            raise Retry(f"It answered {status}.", after_seconds=after)
        raise NotDelivered(f"It answered {status}.")
    raise Permanent(f"It answered {status}.")


def _retry_after(value: str | None) -> float | None:
    """Seconds from now. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        seconds = float(value[:20])
    else:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_SECONDS)


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    if len(given) > _MAX_HEADERS:
        raise Permanent(f"There are more than {_MAX_HEADERS} headers.")
    for name, value in given.items():
        plain = name.lower().replace("_", "-")
        is_ours = plain in _OURS or plain.startswith("proxy-")
        if is_ours or not (_HEADER.fullmatch(name) and value.isascii() and value.isprintable()):
            raise Permanent(f"The header {name[:50]!r} can't be set, or not to this.")
    return {name.title(): value.strip() for name, value in given.items()}
