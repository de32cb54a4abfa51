"""A service whose event loop is watched: `python -m tests.faults.watched FILE` runs it, and writes
into the file a line for each time that the loop was held for long."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from tasksvc import logs
from tasksvc.app import load_handlers
from tasksvc.cli.ending import Ending
from tasksvc.cli.serve import serve
from tasksvc.settings import Settings

_PAUSE_SECONDS = 0.002

LOGGED_SECONDS = 0.01
"""What is shorter is not written."""


def watch(loop: asyncio.AbstractEventLoop, path: Path) -> None:
    """Measures the loop, once it runs, in the thread that this is called in.

    It counts the processor's time of the thread and not the clock's: on a machine that others use
    too, the clock says how long the thread waited for a processor. Between two looks the loop goes
    round for 2 ms, and ends the callback that it is in: so a long time is that of one callback.
    """
    before = time.thread_time()

    def look() -> None:
        nonlocal before
        held = time.thread_time() - before
        if held >= LOGGED_SECONDS:
            with path.open("a") as file:
                file.write(f"{held:.4f}\n")
        before = time.thread_time()
        loop.call_later(_PAUSE_SECONDS, look)

    loop.call_soon(look)


def main(path: Path) -> None:
    make_loop = uvloop.new_event_loop

    def make_watched_loop() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        watch(loop, path)
        return loop

    uvloop.new_event_loop = make_watched_loop  # type: ignore[assignment]
    settings = Settings.from_env()
    with Ending(settings.grace_seconds + 5.0) as ending:
        with logs.configured(settings.log_level, settings.log_file_path):
            serve(settings, ending, load_handlers(settings))
        ending.end(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
