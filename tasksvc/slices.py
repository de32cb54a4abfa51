"""Long work on the event loop, in slices: between two of them the loop does what else there is."""

from __future__ import annotations

import asyncio
import time

_SLICE_SECONDS = 0.005


class Slices:
    """Work that asks, between its parts, whether its slice is over. A part is a millisecond or two
    at most."""

    def __init__(self) -> None:
        self._ends_at = time.monotonic() + _SLICE_SECONDS

    async def rest(self) -> None:
        """Lets the loop go round, when the slice is over."""
        if time.monotonic() >= self._ends_at:
            await asyncio.sleep(0)
            self._ends_at = time.monotonic() + _SLICE_SECONDS
