"""Shows which process owns a server, and whether any of its processes lives."""

import fcntl
import os
import time

from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.folder import StateFolder
from tasksvc.embedded.process import birth_of

#: Between two looks at something that is about to happen.
POLL_SECONDS = 0.005


class OwnerLock:
    """Held by the one process that may start, stop and mend a server."""

    def __init__(self, folder: StateFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._descriptor: int | None = None

    def take(self) -> None:
        if self._descriptor is not None:
            return
        descriptor = self._folder.open(self._name, os.O_RDWR)
        if not _try_lock(descriptor):
            owner = os.pread(descriptor, 20, 0).decode() or "unknown"
            os.close(descriptor)
            raise EmbeddedError(
                f"{self._folder.path} is in use by process {owner}:"
                " stop that one first, or choose another folder (TASKSVC_STATE_DIR)"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Lifeline:
    """A lock that a server and all it forks inherit: free means that all of them have ended.

    It asks for no rights over other processes, does not count zombies, and speaks for a
    postmaster's children as well as for the postmaster. The file also notes the server's
    pid, so that an orphan can be asked to stop.
    """

    def __init__(self, folder: StateFolder, name: str) -> None:
        self.path = folder.path / name
        self._folder = folder
        self.descriptor: int | None = None

    def seize(self, patience_seconds: float = 0.0) -> bool:
        """Take the lock once the last one of the family has gone."""
        # Opened again each time: a lock belongs to the opening, and the family has the old one.
        descriptor = self._folder.open(self.path.name, os.O_RDWR)
        deadline = time.monotonic() + patience_seconds
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return False
            time.sleep(POLL_SECONDS)
        self.descriptor = descriptor
        return True

    def let_go(self) -> None:
        """Leaves the lock to the processes that inherited it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def note(self, pid: int) -> None:
        self._folder.write(self.path.name, f"{pid} {birth_of(pid)}\n")

    def noted(self) -> int | None:
        """Returns the pid in the file, whichever process has it now."""
        words = self._words()
        return int(words[0]) if words else None

    def noted_alive(self) -> int | None:
        """The pid in the file if it still is the process that was noted."""
        words = self._words()
        if len(words) == 2 and birth_of(int(words[0])) == words[1]:
            return int(words[0])
        return None

    def _words(self) -> list[str]:
        return self._folder.read(self.path.name).split()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
