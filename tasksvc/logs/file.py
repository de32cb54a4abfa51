"""The log file. Several processes may write to the same one, and rotate it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tasksvc.logs.sink import reason, write_all

MAX_BYTES = 20 * 1024 * 1024
BACKUPS = 5


class LogFile:
    """Appends lines to a file that only its owner reads, and rotates it at a size.

    Each write appends: lines of several processes don't mix. One of them rotates, under a lock on
    the file itself; the others see at their next write that another file stands at the path. So
    they also do when it was moved or removed by hand.
    """

    def __init__(self, path: Path, on_trouble: Callable[[str], None]) -> None:
        """Raises OSError when the file can't be opened."""
        self._path = path
        self._on_trouble = on_trouble
        self._is_in_trouble = False
        self._is_torn = False
        self._is_forked = False
        self._descriptor: int | None = self._open()

    def write(self, lines: list[bytes]) -> int:
        """Writes what it can, and returns how many lines are lost. Raises nothing."""
        written = 0
        try:
            while written < len(lines):
                part, count = self._part(lines[written:])
                self._append(part)
                written += count
            self._is_in_trouble = False
        except Exception as error:
            self._complain(error)
        return len(lines) - written

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def leave_rotating(self) -> None:
        """In a forked child: it shares the lock with its parent."""
        self._is_forked = True

    def _complain(self, error: Exception) -> None:
        """Once, until it works again."""
        if not self._is_in_trouble:
            self._is_in_trouble = True
            self._on_trouble(reason(error))

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Not to wait for a reader, where it is a named pipe.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags | os.O_NOFOLLOW, 0o600)
        except OSError:
            if not self._path.is_symlink() or os.lstat(self._path).st_uid not in (0, os.geteuid()):
                raise
            descriptor = os.open(self._path, flags, 0o600)
        else:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != 0o600:
                with suppress(OSError):  # it is another's
                    os.fchmod(descriptor, 0o600)
        os.set_blocking(descriptor, True)
        self._is_torn = _is_torn(self._path, os.fstat(descriptor))
        return descriptor

    def _part(self, lines: list[bytes]) -> tuple[bytes, int]:
        """As many of the lines as fit into the file that is open then, at least one."""
        size = self._size()
        if size > 0 and size + len(lines[0]) > MAX_BYTES and not self._is_forked:
            self._rotate()
            size = self._size()
        count = 0
        while count < len(lines) and (count == 0 or size + len(lines[count]) <= MAX_BYTES):
            size += len(lines[count])
            count += 1
        return b"".join(lines[:count]), count

    def _size(self) -> int:
        """Of the file at the path, which is open then; 0 of what is no file."""
        if self._descriptor is not None:
            ours = os.fstat(self._descriptor)
            if not stat.S_ISREG(ours.st_mode):
                return 0
            if _is_same(ours, self._path):
                return ours.st_size
            self.close()
        self._descriptor = self._open()
        found = os.fstat(self._descriptor)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        if self._is_torn:
            data = b"\n" + data
        self._is_torn = True  # a part of it may be written
        write_all(self._descriptor, data)
        self._is_torn = False

    def _rotate(self) -> None:
        """Moves the files on, unless another process is about to. Where that fails the file grows.

        Raises OSError when there is no file afterwards.
        """
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # this file system has no locks
            pass
        if not _is_same(os.fstat(self._descriptor), self._path):
            return  # another process has; the lock goes with the descriptor
        try:
            for number in range(BACKUPS - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(self._backup(number), self._backup(number + 1))
            os.replace(self._path, self._backup(1))
        except OSError as error:
            self._complain(error)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            return
        self.close()  # and the lock with it
        self._descriptor = self._open()

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _is_same(ours: os.stat_result, path: Path) -> bool:
    try:
        theirs = os.stat(path)
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _is_torn(path: Path, found: os.stat_result) -> bool:
    """Whether the last line in it has no end: the disk was full once."""
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        return False
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False
