"""HTTP as bytes on a socket: for what a well-behaved client would never send, and for exactly what
comes back."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

DEADLINE_SECONDS = 15.0

JSON = "Content-Type: application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as it came."""

    version: str
    status: int
    headers: dict[str, str]
    """By the names in lower case. A header that comes twice fails the test."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str = "GET",
    path: str = "/health",
    *headers: str,
    body: bytes | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request's bytes, whether they make sense or not."""
    lines = [f"{method} {path} {version}", "Host: test", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def post(body: bytes, *headers: str) -> bytes:
    """A `POST /task` that says that its body is JSON."""
    return request("POST", "/task", JSON, *headers, body=body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire:
    """A connection to the service."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Sends, as long as the other side takes it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            # When it has answered and closed, the answer may still be there.
            self.socket.sendall(data)

    def answer(self, *, has_body: bool = True) -> Answer | None:
        """The next answer; None when the connection is closed before there is one."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                assert not self._buffer, self._buffer
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, *_ = first.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, head
            headers[name.lower()] = value
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(self._buffer) < length:
            assert self._receive(), "the answer broke off"
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(version, int(status), headers, body)

    def is_closed(self, within_seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether the other side closes, and says nothing more."""
        self.socket.settimeout(within_seconds)
        try:
            return not self._receive() and not self._buffer
        except TimeoutError:
            return False

    def reset(self) -> None:
        """Goes away as a process that is killed does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(65_536)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()


def talk(port: int, data: bytes) -> Answer:
    """The one answer to these bytes."""
    with Wire(port) as wire:
        wire.send(data)
        answer = wire.answer(has_body=not data.startswith(b"HEAD "))
    assert answer is not None, data[:100]
    return answer


def assert_problem(answer: Answer | None, status: int, **extensions: Any) -> dict[str, Any]:
    """That it is a whole RFC 9457 problem and nothing else, under the headers that all have."""
    assert answer is not None
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == "application/problem+json"
    assert_safe_headers(answer)
    problem: dict[str, Any] = answer.json()
    assert list(problem)[:4] == ["type", "title", "status", "detail"]
    assert problem["type"] == "about:blank"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert {name: problem[name] for name in list(problem)[4:]} == extensions
    return problem


def assert_safe_headers(answer: Answer) -> None:
    assert answer.headers["server"] == "tasksvc"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-request-id"]
    assert "access-control-allow-origin" not in answer.headers
