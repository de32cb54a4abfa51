"""A TCP proxy that breaks the network between two processes, in one of many ways.

It runs in a thread of its own, so that a synchronous test or nemesis can steer it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mode:
    """How the proxy treats connections and bytes from now on."""

    refuse: bool = False
    """New connections are reset."""
    silence: bool = False
    """Bytes are swallowed, in both directions; connections stay open."""
    delay_seconds: float = 0.0
    """Every piece is this late."""
    piece_bytes: int = 65536
    """Bytes travel in pieces of this size at most."""
    cut_after_bytes: int | None = None
    """A connection is cut when the server has answered so many bytes since the mode began."""
    swallow_replies: bool = False
    """Requests arrive; answers do not, and the connection is cut: the outcome is unknown."""
    reset: bool = False
    """A cut is a reset (RST) and not an orderly end."""


PASS = Mode()


class Proxy:
    """Listens on a port of its own and passes all on to `target` (a host and port, or a path).

    `listener` is a bound socket to listen on, which may be of another network; a port of loopback
    otherwise.
    """

    def __init__(
        self, target: tuple[str, int] | str, listener: socket.socket | None = None
    ) -> None:
        self._target = target
        self._listener = listener or _loopback()
        self._mode = PASS
        self._replied = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, sock=self._listener))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._writers) // 2

    def set(self, mode: Mode) -> None:
        """Changes the mode for all connections, those that are open too."""
        self._replied = 0
        self._mode = mode

    def heal(self) -> None:
        """Passes everything; what was broken stays cut, so that no client waits for lost bytes."""
        was, self._mode = self._mode, PASS
        if was != PASS:
            self.cut()

    def cut(self, *, reset: bool = False) -> None:
        """Ends every open connection."""
        self._call(self._cut(reset))

    def half_close(self) -> None:
        """Closes the sending side of every connection, and goes on reading from it."""

        async def close() -> None:
            for writer in self._writers:
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write_eof()

        self._call(close())

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        await self._cut(False)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self, reset: bool) -> None:
        for writer in list(self._writers):
            _end(writer, reset)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode.refuse:
            _end(writer, True)
            return
        try:
            if isinstance(self._target, str):
                there = await asyncio.open_unix_connection(self._target)
            else:
                there = await asyncio.open_connection(*self._target)
        except OSError:
            _end(writer, True)
            return
        pair = {writer, there[1]}
        self._writers |= pair
        try:
            await asyncio.gather(
                self._pass(reader, there[1], is_reply=False),
                self._pass(there[0], writer, is_reply=True),
            )
        except (OSError, RuntimeError, asyncio.CancelledError):
            pass  # canceled at the end only, and no task waits for this one
        finally:
            self._writers -= pair
            for each in pair:
                _end(each, self._mode.reset)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        while data := await reader.read(65536):
            for start in range(0, len(data), self._mode.piece_bytes):
                await self._pass_piece(
                    data[start : start + self._mode.piece_bytes], writer, is_reply
                )
        raise ConnectionResetError  # one side has ended: so does the other

    async def _pass_piece(self, piece: bytes, writer: asyncio.StreamWriter, is_reply: bool) -> None:
        mode = self._mode
        if mode.delay_seconds:
            await asyncio.sleep(mode.delay_seconds)
        if mode.silence:
            return
        if is_reply and mode.swallow_replies:
            raise ConnectionResetError
        if is_reply and mode.cut_after_bytes is not None:
            room = mode.cut_after_bytes - self._replied
            self._replied += len(piece)
            if len(piece) > room:
                writer.write(piece[: max(0, room)])
                await writer.drain()
                raise ConnectionResetError
        writer.write(piece)
        await writer.drain()


def _loopback() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _end(writer: asyncio.StreamWriter, reset: bool) -> None:
    with contextlib.suppress(OSError, RuntimeError, AttributeError):
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()
