"""A service whose event loop is watched: `python -m tests.faults.watched FILE` runs it, and writes
into the file a line for each time that the loop was held for long."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from tasksvc import logs
from tasksvc.serve import serve
from tasksvc.settings import Settings

_PAUSE_SECONDS = 0.002

LOGGED_SECONDS = 0.01
"""What is shorter is not written."""


def watch(path: Path) -> None:
    """Measures the loop of this thread from now on.

    It counts the processor's time of the thread and not the clock's: on a machine that others use
    too, the clock says how long the thread waited for a processor. Between two looks the loop goes
    round for 2 ms, and ends the callback that it is in: so a long time is that of one callback.
    """
    loop = asyncio.get_running_loop()
    before = time.thread_time()

    def look() -> None:
        nonlocal before
        now = time.thread_time()
        if (held := now - before) >= LOGGED_SECONDS:
            with path.open("a") as file:
                file.write(f"{held:.4f}\n")
            now = time.thread_time()
        before = now
        loop.call_later(_PAUSE_SECONDS, look)

    look()


async def _serve(path: Path) -> None:
    watch(path)
    await serve(Settings.from_env())


if __name__ == "__main__":
    settings = Settings.from_env()
    with logs.configured(settings.log_level, settings.log_file_path):
        uvloop.run(_serve(Path(sys.argv[1])))
