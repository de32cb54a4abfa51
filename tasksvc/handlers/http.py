"""The kind `http`: a task is delivered by POST to a URL, so that its work may be written in any
language.

Only to hosts that the operator allows, and to no address that is not public, whatever the name
resolves to and whenever: the address that was checked is the one that is connected to. Redirects
are not followed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tasksvc.domain.retry import Permanent, Retry
from tasksvc.domain.task import Claim

KIND = "http"

_TIMEOUT_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 86_400.0

_TRY_AGAIN = frozenset({408, 425, 429})
"""Of the 4xx: what may be different next time."""

_OURS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
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
"""Headers that a task can't set."""

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")

_TUNNELS = [
    ipaddress.ip_network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
]
"""IPv6 addresses that lead to an IPv4 address within them."""


class NotDelivered(Exception):
    """The other side did not take it this time."""


class AddressRefused(OSError):
    """The name leads to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether it is neither private, nor of this machine or link, nor reserved, nor a tunnel."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TUNNELS):
            return False
    return ip.is_global and not ip.is_multicast


class _PublicResolver(AbstractResolver):
    """Resolves a name, unless it leads anywhere that is not public."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise AddressRefused
        return found

    async def close(self) -> None:
        await self._resolver.close()


class HttpDelivery:
    """A handler. `allowed` are host names, each with a port if it is not the usual one; one that
    begins with `*.` stands for every name below it."""

    def __init__(
        self, allowed: Sequence[str], *, allows_private: bool, max_answer_bytes: int
    ) -> None:
        self._allowed = frozenset(host.lower() for host in allowed)
        self._allows_private = allows_private
        self._max_answer_bytes = max_answer_bytes
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, claim: Claim) -> Any:
        """The answer, as JSON where it says that it is, or as text.

        Raises Permanent, Retry, NotDelivered, and what aiohttp raises.
        """
        url, headers, body = self._order(claim.content)
        headers |= {
            "Tasksvc-Task-Id": claim.id,
            "Tasksvc-Attempt": str(claim.attempt),
            "Idempotency-Key": claim.id,
            "User-Agent": "tasksvc",
        }
        timeout = aiohttp.ClientTimeout(
            claim.timeout_seconds or _TIMEOUT_SECONDS, sock_connect=_CONNECT_SECONDS
        )
        try:
            async with self._open().post(
                url, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as answer:
                _check(answer.status, answer.headers)
                return await self._read(answer)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise Permanent("The host's address is not allowed.") from None
            raise NotDelivered("The host can't be reached.") from None  # it names the address
        except aiohttp.InvalidURL:
            raise Permanent("The url is none that can be asked.") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotDelivered(f"{type(error).__name__}.") from None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = None if self._allows_private else _PublicResolver()
            # A connection for each: the other side may close one that is kept alive just when a
            # task is sent, and whether it arrived is anybody's guess.
            connector = aiohttp.TCPConnector(resolver=resolver, limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    def _order(self, content: str) -> tuple[URL, dict[str, str], bytes]:
        """What the content asks for: `{"url": …, "headers": {…}, "body": …}`."""
        try:
            order = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise Permanent("The content is not JSON.") from None
        if not isinstance(order, dict) or order.keys() - {"url", "headers", "body"}:
            raise Permanent("The content must be an object of url, headers and body.")
        url = self._url(order.get("url"))
        headers = {"Content-Type": "application/json", **_headers(order.get("headers", {}))}
        body = order.get("body")
        return url, headers, body.encode() if isinstance(body, str) else orjson.dumps(body)

    def _url(self, text: object) -> URL:
        try:
            url = URL(text)  # type: ignore[arg-type]
            host = (url.host or "").lower().rstrip(".")
            is_usable = url.scheme in ("http", "https") and url.user is None and host != ""
        except (TypeError, ValueError):
            is_usable = False
        if not is_usable:
            raise Permanent("The url must be one of http or https, without a user.")
        named = host if url.is_default_port() else f"{host}:{url.port}"
        labels = named.split(".")
        above = {f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels))}
        if self._allowed.isdisjoint({named, *above}):
            raise Permanent("The host is not allowed.")
        if not self._allows_private and _is_address(host) and not is_public(host):
            raise Permanent("The host's address is not allowed.")
        return url

    async def _read(self, answer: aiohttp.ClientResponse) -> Any:
        data = bytearray()
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > self._max_answer_bytes:
                raise Permanent(f"The answer has more than {self._max_answer_bytes} bytes.")
        if not data:
            return None
        if answer.content_type == "application/json":
            try:
                return orjson.loads(data)
            except orjson.JSONDecodeError:
                raise Permanent("The answer says that it is JSON, and is not.") from None
        return data.decode("utf-8", "replace")


def _check(status: int, headers: Mapping[str, str]) -> None:
    """Raises what a status means that is not 2xx."""
    if 200 <= status < 300:
        return
    if status in _TRY_AGAIN or status >= 500:
        after = _retry_after(headers.get("Retry-After"))
        if after is not None:
            raise Retry(f"It answered {status}.", after_seconds=after)
        raise NotDelivered(f"It answered {status}.")
    raise Permanent(f"It answered {status}.")


def _retry_after(value: str | None) -> float | None:
    """Seconds from now. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if value is None:
        return None
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_SECONDS)


def _headers(given: object) -> dict[str, str]:
    if not isinstance(given, dict):
        raise Permanent("The headers must be an object.")
    for name, value in given.items():
        is_value = isinstance(value, str) and value.isascii() and value.isprintable()
        if not (_HEADER.fullmatch(name) and is_value) or name.lower() in _OURS:
            raise Permanent(f"The header {name[:50]!r} can't be set so.")
    return {name.title(): value for name, value in given.items()}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
