"""The watchdog: how late the event loop is, and which loops no longer come round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tasksvc.metrics import Metrics

log = structlog.get_logger(__name__)


class Watchdog:
    name = "watchdog"
    pause_seconds = 0.0

    def __init__(self, stalled: Callable[[], list[str]], metrics: Metrics) -> None:
        self._stalled = stalled
        self._metrics = metrics

    async def run_once(self) -> int:
        loop = asyncio.get_running_loop()
        expected = loop.time() + 1
        await asyncio.sleep(1)
        self._metrics.set_event_loop_lag(max(0.0, loop.time() - expected))
        if stalled := self._stalled():
            log.error("Loops are stalled", action="loops_stalled", loops=stalled)
        return 0
