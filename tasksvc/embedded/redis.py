"""A private Redis on a loopback port."""

import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tasksvc.embedded.account import Account, Doors
from tasksvc.embedded.binaries import find_redis
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.process import Command, send
from tasksvc.embedded.server import GONE_SECONDS, Announce, Server, announce_to_log

#: The first that has XAUTOCLAIM.
OLDEST_VERSION = (6, 2)

_HOST = "127.0.0.1"
_WHO = "PING\r\nINFO server\r\nQUIT\r\n"
_ANSWER_SECONDS = 0.5
#: A port that was free may be somebody's a moment later.
_PORT_TRIES = 5


class EmbeddedRedis(Server):
    """Redis without a password, for this machine alone; what it knows can be lost, and is kept on
    disk only if somebody wants it."""

    name = "redis"
    title = "Redis"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        state_dir: Path,
        *,
        server: Path | None = None,
        announce: Announce = announce_to_log,
        port: int | None = None,
        options: Mapping[str, str] = MappingProxyType({}),
        persistent: bool = False,
    ) -> None:
        super().__init__(state_dir, announce)
        self._server = server
        self._port = port
        self._options = dict(options)
        self._persistent = persistent

    def _prepare(self, account: Account) -> None:
        self._program = find_redis(self._server)
        self._announce(f"Redis from {self._program.source}: {self._program.path}")

    def _launch(self, account: Account) -> None:
        """On the port it had before, or the caller's, or one that is free."""
        if self._port is not None:
            super()._launch(account)
        else:
            self._launch_on_a_free_port(account)
        self._url = f"redis://{_HOST}:{self._port}/0"

    def _launch_on_a_free_port(self, account: Account) -> None:
        for tries_left in reversed(range(_PORT_TRIES)):
            self._port = _free_port()
            try:
                super()._launch(account)
            except EmbeddedError:
                if not tries_left or not self._lost_the_port():
                    raise
            else:
                return

    def _lost_the_port(self) -> bool:
        return "in use" in self.log.tail() and self._lifeline.seize(GONE_SECONDS)

    def _command(self, account: Account, doors: Doors) -> Command:
        settings = {
            "bind": _HOST,
            "port": str(self._port),
            "protected-mode": "yes",
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "daemonize": "no",
            **self._options,
        }
        words = [word for name, value in settings.items() for word in _option(name, value)]
        # Its own folder is where it starts, and is spelled ".": whoever it runs as, that works.
        return Command(
            [self._program.path.name, *words],
            executable=self._executable(account),
            folder=self.home,
            death_signal=self.stop_signal,
        )

    def _executable(self, account: Account) -> str:
        """The program, or a copy when it is out of the account's reach."""
        program = self._program.path
        if account.may_run(program):
            return str(program)
        copy = self.home / program.name
        copy.unlink(missing_ok=True)
        shutil.copyfile(program, copy)
        copy.chmod(0o755)
        return f"./{copy.name}"

    def _ask_to_stop(self, process: subprocess.Popen[bytes]) -> None:
        # A command is obeyed at once, a signal at Redis' next look, ten times a second.
        send(process.pid, signal.SIGCONT)
        if self._is_ours(self._ask(_WHO)):
            self._ask("SHUTDOWN\r\n")
        super()._ask_to_stop(process)

    def _is_ready(self) -> bool:
        answer = self._ask(_WHO)
        if not answer.startswith("+PONG") or not self._is_ours(answer):
            return False
        self._refuse_old(answer)
        return True

    def _is_ours(self, answer: str) -> bool:
        """A stranger may answer on a port that we failed to get."""
        return f"process_id:{self.pid}\r" in answer

    def _refuse_old(self, information: str) -> None:
        found = re.search(r"redis_version:(\d+)\.(\d+)", information)
        if found and (int(found[1]), int(found[2])) < OLDEST_VERSION:
            raise EmbeddedError(
                f"{self._program.path} is Redis {found[1]}.{found[2]}, and the oldest that will do"
                f" is {'.'.join(map(str, OLDEST_VERSION))}: install a newer one, or set REDIS_HOST"
                " or REDIS_URL to a running server"
            )

    def _ask(self, request: str) -> str:
        assert self._port is not None
        try:
            with socket.create_connection((_HOST, self._port), _ANSWER_SECONDS) as connection:
                connection.sendall(request.encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError:
            return ""


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}", *(shlex.split(value) or [""])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
