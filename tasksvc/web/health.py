"""Whether this process can serve, and what is wrong by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tasksvc.domain.errors import Unavailable
from tasksvc.services.sharing import Flight

_CACHED_SECONDS = 0.5
"""However often health is asked for, PostgreSQL is not asked more often."""


class Health:
    """Knows how to ask, and remembers whether the process is stopping."""

    def __init__(
        self,
        ping_store: Callable[[], Awaitable[None]],
        is_stream_up: Callable[[], bool],
        stalled_loops: Callable[[], list[str]],
        failing_loops: Callable[[], list[str]],
    ) -> None:
        self._pinging = Flight(ping_store, _CACHED_SECONDS)
        self._is_stream_up = is_stream_up
        self._stalled_loops = stalled_loops
        self._failing_loops = failing_loops
        self.is_draining = False
        """Requests are answered, and are to be sent elsewhere."""
        self.is_stopping = False

    async def is_ready(self) -> bool:
        """PostgreSQL answers, and the process is not about to stop."""
        return not self._is_leaving and await self._ask_store()

    def is_live(self) -> bool:
        """Every loop comes round."""
        return not self._stalled_loops()

    async def problems(self) -> list[str]:
        """What keeps the service from serving."""
        found = []
        if self._is_leaving:
            found.append("stopping")
        if not await self._ask_store():
            found.append("postgres")
        return [*found, *dict.fromkeys(self._stalled_loops() + self._failing_loops())]

    def degraded(self) -> list[str]:
        """What is away without keeping the service from serving."""
        return [] if self._is_stream_up() else ["redis"]

    @property
    def _is_leaving(self) -> bool:
        return self.is_draining or self.is_stopping

    async def _ask_store(self) -> bool:
        try:
            await self._pinging.join()
        except Unavailable:
            return False
        return True
