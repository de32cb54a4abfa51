"""The state folder, and files in it.

Root may start the servers in a folder where other users may write. So nothing that another user
could have put there is followed, opened, emptied or given away.
"""

import os
import stat
from pathlib import Path

from tasksvc.embedded.errors import EmbeddedError

_OTHERS_MAY_WRITE = 0o022


class StateFolder:
    """Ours alone while it is open. Files in it are opened by its descriptor, whatever is put in
    its place meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        if self._descriptor is None:
            self._descriptor = self._open()
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file in it, which is made if it is not there.

        Raises EmbeddedError: it is no file of ours.
        """
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self.descriptor)
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_ours(status)):
            os.close(descriptor)
            raise _refuse(self.path / name, "is not a file of its own")
        return descriptor

    def read(self, name: str) -> str:
        """All of a file in it."""
        with open(self.open(name, os.O_RDONLY)) as file:
            return file.read()

    def write(self, name: str, text: str) -> None:
        """Puts the text in the place of all that is in the file."""
        with open(self.open(name, os.O_WRONLY), "w") as file:
            file.truncate(0)
            file.write(text)

    def _open(self) -> int:
        # Servers that run as another user pass through it. They do not see what is in it.
        self.path.mkdir(0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        if not _is_ours(self.path.lstat()):  # a link
            raise _refuse(self.path, f"belongs to user {self.path.lstat().st_uid}")
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not _is_ours(status):
            raise _refuse(self.path, f"belongs to user {status.st_uid}")
        if status.st_mode & _OTHERS_MAY_WRITE:
            raise EmbeddedError(
                f"{self.path} can be written by other users, which could put links into it:"
                f" chmod go-w {self.path}, or choose another folder (TASKSVC_STATE_DIR)"
            )
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _refuse(self.path / entry.name, "is a link")


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _refuse(path: Path, reason: str) -> EmbeddedError:
    return EmbeddedError(
        f"{path} {reason}, so what is there can't be trusted: remove it, or choose another folder"
        " (TASKSVC_STATE_DIR)"
    )
