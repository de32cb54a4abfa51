"""Where the servers' sockets are: only their own user and root may connect."""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tasksvc.embedded.account import Account
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.folder import StateFolder

#: The room in the kernel's sockaddr_un, less its final zero byte.
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103


class SocketFolder:
    """A private folder for a socket: the server's home, or a temporary one when the home's path
    will not do."""

    def __init__(self, folder: StateFolder, home: Path, socket_name: str) -> None:
        self._folder = folder
        self._home = home
        self._socket_name = socket_name
        self._note = f"{home.name}.socket"
        self._temporary: Path | None = None

    def make(self, account: Account) -> Path:
        """The folder. Raises EmbeddedError when there is none that will do."""
        if self._fits(self._home):
            return self._home
        self._temporary = self._make_temporary(account)
        return self._temporary

    def remove(self) -> None:
        """The note stays, so that the next start makes the same folder and the URL still holds."""
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.rmdir()

    def _make_temporary(self, account: Account) -> Path:
        noted = self._noted()
        if noted is not None and _take_private(noted, account):
            return noted
        folder = Path(tempfile.mkdtemp(prefix="tasksvc-"))
        if not self._fits(folder):
            raise EmbeddedError(f"{folder} will not do for a socket: choose a shorter TMPDIR")
        account.own(folder)
        self._folder.write(self._note, str(folder))
        return folder

    def _noted(self) -> Path | None:
        text = self._folder.read(self._note)
        return Path(text) if text else None

    def _fits(self, folder: Path) -> bool:
        """Whether a socket can be there: for PostgreSQL a comma begins the next folder of a
        list."""
        path = folder / self._socket_name
        return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES and not set(',"') & set(str(path))


def _take_private(folder: Path, account: Account) -> bool:
    """Whether the folder of an earlier run is, or can be made, ours alone."""
    try:
        account.make_private(folder)
    except FileExistsError:
        status = folder.lstat()
        return status.st_uid == account.uid and status.st_mode == stat.S_IFDIR | 0o700
    except OSError:
        return False
    return True
