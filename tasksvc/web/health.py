"""Whether this process can serve, and what is wrong by name."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tasksvc.domain.errors import Unavailable

_CACHED_SECONDS = 0.5
"""However often health is asked for, PostgreSQL is not asked more often."""


@dataclass(slots=True)
class Health:
    """Knows how to ask, and remembers whether the process is stopping."""

    ping_store: Callable[[], Awaitable[None]]
    is_stream_up: Callable[[], bool]
    stalled_loops: Callable[[], list[str]]
    failing_loops: Callable[[], list[str]] = list
    is_stopping: bool = False
    _asked_at: float = field(default=-_CACHED_SECONDS, init=False)
    _is_store_up: bool = field(default=False, init=False)

    async def is_ready(self) -> bool:
        """PostgreSQL answers, and the process is not stopping."""
        return not self.is_stopping and await self._ask_store()

    def is_live(self) -> bool:
        """Every loop comes round."""
        return not self.stalled_loops()

    async def problems(self) -> list[str]:
        """What keeps the service from serving."""
        found = []
        if self.is_stopping:
            found.append("stopping")
        if not await self._ask_store():
            found.append("postgres")
        return [*found, *dict.fromkeys(self.stalled_loops() + self.failing_loops())]

    def degraded(self) -> list[str]:
        """What is away without keeping the service from serving."""
        return [] if self.is_stream_up() else ["redis"]

    async def _ask_store(self) -> bool:
        if time.monotonic() - self._asked_at >= _CACHED_SECONDS:
            try:
                await self.ping_store()
                self._is_store_up = True
            except Unavailable:
                self._is_store_up = False
            self._asked_at = time.monotonic()
        return self._is_store_up
