"""A pooler between the service and PostgreSQL, which treats sessions as PgBouncer does.

It runs in a thread of its own. It knows only the messages that psycopg2 sends.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

_OK = b"R" + struct.pack("!ii", 8, 0)
_KEY = b"K" + struct.pack("!iii", 12, 4_711, 0)
_IDLE = b"Z" + struct.pack("!i", 5) + b"I"


class Pooler:
    """Listens on a port of its own. Asks for no password, and leaves out or refuses `options`.

    By transactions: two connections to PostgreSQL serve all clients, a transaction each.
    """

    def __init__(self, socket: str, *, by_transactions: bool, refuses_options: bool = True) -> None:
        self._socket = socket
        self._by_transactions = by_transactions
        self._refuses_options = refuses_options
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Pooler:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in self._idle:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.CancelledError):
            startup = await self._start(reader, writer)
            if startup is not None:
                await self._pass(startup, reader, writer)
        writer.close()

    async def _start(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        while True:
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code == 196_608:
                break
            writer.write(b"N")  # no TLS
        words = body[4:].rstrip(b"\0").split(b"\0")
        parameters = dict(zip(words[::2], words[1::2], strict=True))
        if parameters.pop(b"options", None) is not None and self._refuses_options:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            writer.write(b"E" + struct.pack("!i", len(text) + 4) + text)
            await writer.drain()
            return None
        body = b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items())
        return struct.pack("!ii", len(body) + 9, 196_608) + body + b"\0"

    async def _pass(
        self, startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        backend, greeting = await self._connect(startup)
        writer.write(_OK + greeting + _KEY + _IDLE)
        if self._by_transactions:
            self._idle.append(backend)
        is_free = self._by_transactions
        try:
            while True:
                message = await _read(reader)
                if message[:1] == b"X":
                    break
                if is_free:
                    backend = self._idle.pop(0)
                backend[1].write(message)
                while True:
                    answer = await _read(backend[0])
                    is_over = answer[:1] == b"Z"
                    if is_over and self._by_transactions:
                        # Before the client knows: it may send the next at once.
                        is_free = answer[-1:] == b"I"
                        if is_free:
                            self._idle.append(backend)
                    writer.write(answer)
                    if is_over:
                        break
        finally:
            if not self._by_transactions:
                backend[1].close()

    async def _connect(
        self, startup: bytes
    ) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], bytes]:
        """A backend, and what it says of its parameters."""
        backend = await asyncio.open_unix_connection(self._socket)
        backend[1].write(startup)
        greeting = b""
        while (message := await _read(backend[0]))[:1] != b"Z":
            if message[:1] == b"S":
                greeting += message
        return backend, greeting


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
