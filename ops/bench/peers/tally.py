"""What a worker's handler does: it counts. The bench reads along, and nobody's store is asked.

Runs in a peer's environment, where nothing of ours is installed.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

_FORM = struct.Struct("<dQ")
"""When the first task was worked, by the clock of the machine, and how many were."""


class Tally:
    """A counter in a file that another process can read."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)
        self._started_at, self._count = self.read()

    @classmethod
    def create(cls, path: Path) -> Tally:
        path.write_bytes(bytes(_FORM.size))
        return cls(path)

    def read(self) -> tuple[float, int]:
        started_at, count = _FORM.unpack_from(self._memory)
        return started_at, count

    def add(self) -> None:
        if not self._count:
            self._started_at = time.monotonic()
        self._count += 1
        _FORM.pack_into(self._memory, 0, self._started_at, self._count)


def own() -> Tally:
    """That of this process."""
    return Tally(Path(os.environ["BENCH_TALLY"]))
