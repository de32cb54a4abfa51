"""A private Redis, reached through a unix socket in a folder of its own."""

import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from tasksvc.embedded.account import Account, Doors
from tasksvc.embedded.binaries import find_redis
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.process import Command, send
from tasksvc.embedded.server import Announce, Server, announce_to_log

#: The first that has XAUTOCLAIM.
OLDEST_VERSION = (6, 2)

_SOCKET_NAME = "redis.sock"
_WHO = "PING\r\nINFO server\r\nQUIT\r\n"
_ANSWER_SECONDS = 0.5


class EmbeddedRedis(Server):
    """Redis without a password, which the socket's private folder protects: every client of a
    Redis can run programs as its user. Its data can be lost, and is kept on disk only if somebody
    wants it."""

    name = "redis"
    title = "Redis"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        state_dir: Path,
        *,
        server: Path | None = None,
        announce: Announce = announce_to_log,
        port: int = 0,
        options: Mapping[str, str] = MappingProxyType({}),
        persistent: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`port` is for clients that know no unix sockets, on a machine without other users: it is
        open to all users."""
        super().__init__(state_dir, announce, _SOCKET_NAME, variables)
        self._server = server
        self._port = port
        self._options = dict(options)
        self._persistent = persistent

    @property
    def socket_path(self) -> Path:
        return self._sockets / _SOCKET_NAME

    def _prepare(self, account: Account) -> None:
        self._program = find_redis(self._server)
        self._announce(f"Redis from {self._program.source}: {self._program.path}")
        self._sockets = self._socket_folder.make(account)
        self._url = f"unix://{quote(str(self.socket_path))}?db=0"

    def _command(self, account: Account, doors: Doors) -> Command:
        # Its own folder is where it starts, and is spelled ".": that works for every user.
        folder = "." if self._sockets == self.home else doors.path(self._sockets)
        settings = {
            "unixsocket": shlex.quote(f"{folder}/{_SOCKET_NAME}"),
            "unixsocketperm": "700",
            "bind": "127.0.0.1",
            "port": str(self._port),
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "daemonize": "no",
            **self._options,
        }
        words = [word for name, value in settings.items() for word in _option(name, value)]
        return Command(
            [self._program.path.name, *words],
            executable=self._executable(account),
            folder=self.home,
            death_signal=self.stop_signal,
            variables=self._variables,
        )

    def _executable(self, account: Account) -> str:
        """The program, or a copy when it is out of the account's reach."""
        program = self._program.path
        if account.may_run(program):
            return str(program)
        # Not in its own folder: root must not write where another user may put a link.
        copy = self.state_dir / program.name
        copy.unlink(missing_ok=True)
        shutil.copyfile(program, copy)
        copy.chmod(0o755)
        return f"../{copy.name}"

    def _ask_to_stop(self, process: subprocess.Popen[bytes]) -> None:
        # A command is obeyed at once, a signal at Redis' next look, ten times a second.
        send(process.pid, signal.SIGCONT)
        self._ask("SHUTDOWN\r\n")
        super()._ask_to_stop(process)

    def _is_ready(self) -> bool:
        answer = self._ask(_WHO)
        if not answer.startswith("+PONG"):
            return False
        self._refuse_old(answer)
        return True

    def _refuse_old(self, information: str) -> None:
        found = re.search(r"redis_version:(\d+)\.(\d+)", information)
        if found and (int(found[1]), int(found[2])) < OLDEST_VERSION:
            raise EmbeddedError(
                f"{self._program.path} is Redis {found[1]}.{found[2]}, and the oldest that will do"
                f" is {'.'.join(map(str, OLDEST_VERSION))}: install a newer one, or set REDIS_HOST"
                " or REDIS_URL to a running server"
            )

    def _ask(self, request: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.connect(str(self.socket_path))
                connection.sendall(request.encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError:
            return ""


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}", *(shlex.split(value) or [""])]
