"""Long work on the event loop, in slices: between two slices the loop runs its other callbacks."""

from __future__ import annotations

import asyncio
import time

_SLICE_SECONDS = 0.005


class Slices:
    """Lets work ask, between its parts, whether its slice is over. A part takes at most a
    millisecond or two."""

    def __init__(self) -> None:
        self._ends_at = time.monotonic() + _SLICE_SECONDS

    async def rest(self) -> None:
        """Yields to the event loop when the slice is over."""
        if time.monotonic() >= self._ends_at:
            await asyncio.sleep(0)
            self._ends_at = time.monotonic() + _SLICE_SECONDS
