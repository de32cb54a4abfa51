"""What a client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    max_body_bytes: int
    max_batch_bytes: int
    """Of a body with many tasks."""
    body_timeout_seconds: float
