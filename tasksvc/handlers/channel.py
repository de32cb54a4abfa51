"""Messages from the process of a handler to the service.

Each is a tuple of plain values, pickled, after its length in eight bytes.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import socket
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

MAX_BYTES = 64 * 1024 * 1024
"""The longest message."""

_LENGTH = struct.Struct("!Q")


class MessageTooLong(ValueError):
    """It has more than MAX_BYTES."""


class BrokenMessage(Exception):
    """The received bytes are no message: something else has written to the pipe."""


class Sender:
    """The end in the process of the handler. Its threads may send, and the processes that it
    forks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._among_threads = threading.Lock()
        # A lock of POSIX belongs to a process, and ends with it. A semaphore would stay taken when
        # a forked process is killed.
        self._among_processes, path = tempfile.mkstemp()
        os.unlink(path)
        self._sending: int | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def send(self, *message: Any) -> None:
        """Sends one message, and waits until it fits into the connection.

        Raises MessageTooLong, and OSError when there is no receiver.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if len(data) > MAX_BYTES:
            raise MessageTooLong(f"A message of {len(data)} bytes, where {MAX_BYTES} fit.")
        if self._sending == threading.get_ident():
            return  # a signal's handler interrupts a send; waiting would never end
        with self._turn():
            self._connection.sendall(_LENGTH.pack(len(data)))
            self._connection.sendall(data)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._among_threads:
            self._sending = threading.get_ident()
            try:
                fcntl.lockf(self._among_processes, fcntl.LOCK_EX)
                try:
                    yield
                finally:
                    fcntl.lockf(self._among_processes, fcntl.LOCK_UN)
            finally:
                self._sending = None

    def _after_fork(self) -> None:
        self._among_threads = threading.Lock()  # a thread that is not here any more may have it
        self._sending = None


class Receiver:
    """The end in the service: it never blocks."""

    def __init__(
        self, connection: socket.socket, until_readable: Callable[[], Awaitable[bool]]
    ) -> None:
        """`until_readable` waits until the connection may have something to read; false when it
        need not be awaited any more, since the sender is gone."""
        connection.setblocking(False)
        self._connection = connection
        self._until_readable = until_readable

    async def receive(self) -> tuple[Any, ...]:
        """The next message.

        Raises EOFError when none comes any more, and BrokenMessage.
        """
        (length,) = _LENGTH.unpack(await self._read(_LENGTH.size))
        if length > MAX_BYTES:
            raise BrokenMessage
        data = await self._read(length)
        try:
            message = pickle.loads(data)
        except Exception:
            raise BrokenMessage from None
        if not isinstance(message, tuple):
            raise BrokenMessage
        return message

    async def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            may_come = await self._until_readable()
            try:
                received = self._connection.recv_into(view)
            except BlockingIOError:
                if may_come:
                    continue
                received = 0
            except ConnectionError:
                received = 0
            if not received:
                raise EOFError
            view = view[received:]
        return data
