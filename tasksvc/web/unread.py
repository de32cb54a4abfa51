"""The answers that clients have not read yet: for how long, and how many bytes at a time."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable

_LOOKS = 6
"""How often an answer is looked at within its time."""

_MAX_INTERVAL_SECONDS = 5.0

_SHARE_LEFT = 7 / 8
"""How full the room is left once some of it had to be made."""


class _Answer:
    """An answer on its way. `left` is what the client has not acknowledged, `since` when that last
    became less."""

    __slots__ = ("left", "since", "size", "transport")

    def __init__(self, transport: asyncio.Transport, size: int, now: float) -> None:
        self.transport = transport
        self.size = size
        self.left = _left(transport)
        self.since = now

    def look(self, now: float) -> None:
        left = _left(self.transport)
        if left < self.left:
            self.left = left
            self.since = now


class Unread:
    """Aborts the connection of a client that reads nothing of its answer for `timeout_seconds`, and
    of the one that has read nothing for the longest when all such answers have over `max_bytes`.

    An answer that the system takes at once is not seen here.
    """

    def __init__(
        self, *, timeout_seconds: float, max_bytes: int, on_abort: Callable[[], None]
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._on_abort = on_abort
        self._answers: dict[asyncio.Transport, _Answer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.bytes = 0

    def add(self, transport: asyncio.Transport, size: int) -> None:
        """An answer of `size` bytes that was written, and is not sent in full."""
        loop = asyncio.get_running_loop()
        self.remove(transport)
        self._answers[transport] = _Answer(transport, size, loop.time())
        self.bytes += size
        if self.bytes > self._max_bytes:
            self._make_room(loop.time(), newest=transport)
        if self._timer is None:
            self._wait(loop)

    def remove(self, transport: asyncio.Transport) -> None:
        """It is sent, or its connection is closed."""
        answer = self._answers.pop(transport, None)
        if answer is not None:
            self.bytes -= answer.size

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        seconds = min(self._timeout_seconds / _LOOKS, _MAX_INTERVAL_SECONDS)
        self._timer = loop.call_later(seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for answer in list(self._answers.values()):
            answer.look(now)
            if now - answer.since >= self._timeout_seconds:
                self._abort(answer.transport)
        if self._answers:
            self._wait(loop)

    def _make_room(self, now: float, *, newest: asyncio.Transport) -> None:
        others = [each for each in self._answers.values() if each.transport is not newest]
        for answer in others:
            answer.look(now)
        others.sort(key=lambda answer: answer.since)
        for answer in others:
            if self.bytes <= self._max_bytes * _SHARE_LEFT:
                break
            self._abort(answer.transport)

    def _abort(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()
        self._on_abort()


def _left(transport: asyncio.Transport) -> int:
    """The bytes that the client has not acknowledged.

    Those that the system has already taken are among them: a client that reads slowly makes place
    there for the next only after a megabyte or more.
    """
    count = array.array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    except (OSError, AttributeError):  # closed just now, or a system that can't say
        count[0] = 0
    return transport.get_write_buffer_size() + count[0]
