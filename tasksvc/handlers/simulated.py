"""The default: a task that takes its time and does nothing."""

from __future__ import annotations

import asyncio

from tasksvc.domain.task import Claim
from tasksvc.handlers import Handler


def simulated(seconds: float) -> Handler:
    """A handler that sleeps for so long."""

    async def sleep(claim: Claim) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    return sleep
