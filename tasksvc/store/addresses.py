"""The addresses of PostgreSQL's host.

libpq resolves a name while the event loop waits for it. Here the loop goes on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address

_Found = list[tuple[object, ...]]


class Addresses:
    """Resolves the name in a URL, when a connection is made; once at a time, however many ask."""

    def __init__(self, dsn: Mapping[str, str]) -> None:
        host = dsn.get("host") or os.environ.get("PGHOST", "")
        is_given = bool(dsn.get("hostaddr") or os.environ.get("PGHOSTADDR"))
        self._host = None if is_given or not _is_name(host) else host
        self._resolving: asyncio.Future[_Found] | None = None

    async def find(self, within_seconds: float) -> list[str]:
        """The addresses, in the order in which to try them; none when libpq needs no help.

        Raises OSError for a name that can't be resolved, and TimeoutError.
        """
        if self._host is None:
            return []
        if self._resolving is None:
            self._resolving = asyncio.ensure_future(self._resolve(self._host))
            self._resolving.add_done_callback(self._resolved)
        resolving = self._resolving
        # A caller that is canceled here leaves the look-up to the others.
        await asyncio.wait([resolving], timeout=within_seconds)
        if not resolving.done():
            raise TimeoutError
        return list(dict.fromkeys(str(address[4][0]) for address in resolving.result()))  # type: ignore[index]

    async def _resolve(self, host: str) -> _Found:
        loop = asyncio.get_running_loop()
        return list(await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM))

    def _resolved(self, resolving: asyncio.Future[_Found]) -> None:
        self._resolving = None
        if not resolving.cancelled():
            resolving.exception()  # perhaps it has no caller any more


def _is_name(host: str) -> bool:
    """Whether it is no address, and no folder of a socket."""
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False
