"""What a client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times are in seconds, sizes in bytes."""

    max_body_bytes: int
    max_batch_bytes: int
    """Of a body with many tasks."""
    body_timeout_seconds: float
    max_connections: int
    write_timeout_seconds: float
    """How long a client may read nothing of its answer."""
    max_buffer_bytes: int
    """All bodies that have not arrived in full, and again all answers that are not read."""


class Arriving:
    """The bytes of all bodies that have not arrived in full."""

    __slots__ = ("_max_bytes", "bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0

    @property
    def is_full(self) -> bool:
        return self.bytes > self._max_bytes
