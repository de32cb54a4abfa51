"""What a server says, kept in a file: an open pipe would tie it to us."""

import os

from tasksvc.embedded.folder import StateFolder

#: Past this size a new log begins at the next start.
MAX_BYTES = 10 * 1024 * 1024
_TAIL_BYTES = 4096
_TAIL_LINES = 3


class LogFile:
    def __init__(self, folder: StateFolder, name: str) -> None:
        self.path = folder.path / name
        self._folder = folder
        self._begin = 0

    def open(self) -> int:
        """A descriptor to append to. What is there already belongs to earlier runs."""
        descriptor = self._folder.open(self.path.name, os.O_WRONLY | os.O_APPEND)
        if os.fstat(descriptor).st_size > MAX_BYTES:
            os.ftruncate(descriptor, 0)
        self._begin = os.fstat(descriptor).st_size
        return descriptor

    def tail(self) -> str:
        """The last lines of this run, on one line."""
        with open(self._folder.open(self.path.name, os.O_RDONLY), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, end - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return " | ".join(said[-_TAIL_LINES:]) or "it said nothing"
