"""How long the machine kept a process or a thread from running, so that what is measured here does
not depend on what else runs on the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path


def waited_seconds(pid: int) -> float:
    """How long the main thread of the process has waited for a processor since it began. 0 where
    Linux does not say it, or the process is gone."""
    return _waited(Path(f"/proc/{pid}/schedstat"))


class Stopwatch:
    """Seconds from now on, without those in which this thread, or the main thread of one of the
    processes, was ready to run and had no processor."""

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self._own = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._before = {pid: waited_seconds(pid) for pid in pids}
        self._own_before = _waited(self._own)
        self._started = time.monotonic()

    def seconds(self, pids: Iterable[int] | None = None) -> float:
        """`pids` are the processes as they are now: one that is new has waited since its start."""
        passed = time.monotonic() - self._started
        now = self._before if pids is None else pids
        waits = [waited_seconds(pid) - self._before.get(pid, 0.0) for pid in now]
        kept = max(waits, default=0.0) + _waited(self._own) - self._own_before
        return max(0.0, passed - max(0.0, kept))


def _waited(path: Path) -> float:
    try:
        return int(path.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
