"""Chooses the user that a server runs as.

PostgreSQL refuses root, and Redis needs nothing of what root may. So root starts them as another
user, which may have no access to the folders that root works in.
"""

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from tasksvc.embedded.errors import EmbeddedError

_NAMES = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """The user a server runs as. `switch` is false when this process runs as that user already."""

    uid: int
    gid: int
    switch: bool

    def may_reach(self, path: Path) -> bool:
        """Whether each folder above `path` lets this user through."""
        return not self.switch or all(self._may_enter(each) for each in path.resolve().parents)

    def may_run(self, program: Path) -> bool:
        return not self.switch or (self.may_reach(program) and self._may_enter(program))

    def own(self, folder: Path) -> None:
        """Gives a folder to this user; a link is never followed."""
        if self.switch:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(descriptor, self.uid, self.gid)
            finally:
                os.close(descriptor)

    def make_private(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.own(folder)

    def _may_enter(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        if status.st_gid == self.gid:
            return bool(status.st_mode & 0o010)
        return bool(status.st_mode & 0o001)


def account_for(home: Path) -> Account:
    """The owner of `home` when there is one, so that the data keep their user."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), switch=False)
    if home.exists() and (status := home.lstat()).st_uid != 0:
        return Account(status.st_uid, status.st_gid, switch=True)
    for name in _NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, switch=True)
    raise EmbeddedError(
        f"root may not run PostgreSQL, and there is no user {' or '.join(_NAMES)} to run it:"
        " start tasksvc as an ordinary user, or set DATABASE_URL and REDIS_HOST"
    )


class Doors:
    """Ways into folders whose parents shut a server's user out.

    An open descriptor leads straight to what it was opened on, so no parent needs a wider
    mode. The server inherits the descriptors and finds them below /proc/self/fd.
    """

    def __init__(self, account: Account) -> None:
        self.descriptors: list[int] = []
        self._account = account

    def path(self, path: Path) -> str:
        """How the server's user has to spell `path`."""
        if self._account.may_reach(path):
            return str(path)
        if sys.platform != "linux":
            raise EmbeddedError(
                f"User {self._account.uid}, which runs the server for root, cannot reach {path}:"
                " choose a state folder elsewhere, or start tasksvc as an ordinary user"
            )
        self.descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return f"/proc/self/fd/{self.descriptors[-1]}"

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())
