"""The life of a private server: what PostgreSQL and Redis have in common."""

import atexit
import logging
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Self

from tasksvc.embedded.account import Account, Doors, account_for
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.folder import StateFolder
from tasksvc.embedded.locks import POLL_SECONDS, Lifeline, OwnerLock
from tasksvc.embedded.logfile import LogFile
from tasksvc.embedded.process import Command, children_of, holders_of, send, spawn
from tasksvc.embedded.sockets import SocketFolder

Announce = Callable[[str], None]
announce_to_log: Announce = logging.getLogger("tasksvc.embedded").info

#: Until ready. Generous, because recovery after a crash may have much to replay.
START_SECONDS = 60.0
#: For a shutdown that has been asked for; then it is killed, which loses nothing but time.
STOP_SECONDS = 15.0
#: For killed processes to be gone.
GONE_SECONDS = 5.0


class Server(ABC):
    """One server in a state folder, which it shares with servers of other names."""

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        state_dir: Path,
        announce: Announce,
        socket_name: str,
        variables: Mapping[str, str],
    ) -> None:
        self._folder = StateFolder(state_dir)
        self.state_dir = self._folder.path
        self.home = self.state_dir / self.name
        self.log = LogFile(self._folder, f"{self.name}.log")
        self._announce = announce
        self._variables = variables
        self._owner_lock = OwnerLock(self._folder, f"{self.name}.lock")
        self._lifeline = Lifeline(self._folder, f"{self.name}.alive")
        self._socket_folder = SocketFolder(self._folder, self.home, socket_name)
        self._process: subprocess.Popen[bytes] | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Where clients connect. It stays the same however often the server restarts."""
        if self._url is None:
            raise EmbeddedError(f"{self.title} has not been started yet")
        return self._url

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedError(f"{self.title} is not running")
        return self._process.pid

    def start(self) -> None:
        """Bring it up, whatever state an earlier owner left it in. Call from the main thread."""
        if self._running():
            return
        try:
            self._start()
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(
                f"{self.title} did not start: {error}: choose another folder"
                " (TASKSVC_STATE_DIR), or point tasksvc to a running server"
            ) from error

    def stop(self) -> None:
        """Shut it down, and give the folder up to another owner."""
        atexit.unregister(self.stop)
        try:
            if process := self._running():
                self._ask_to_stop(process)
            self.kill()
            self._socket_folder.remove()
        finally:
            self._lifeline.let_go()
            self._owner_lock.release()
            self._folder.close()

    def kill(self) -> None:
        """kill -9 all of it, as a machine out of memory would. `start` brings its data back."""
        if self._process is None:
            return
        if process := self._running():
            _kill_family(process.pid)
            process.wait()
        self._await_end_of_family()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._process is not None and self._process.poll() is None:
            return self._process
        return None

    def _ask_to_stop(self, process: subprocess.Popen[bytes]) -> None:
        send(process.pid, signal.SIGCONT, self.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self, account: Account) -> None:
        """Find the programs and have the data in order."""

    @abstractmethod
    def _command(self, account: Account, doors: Doors) -> Command:
        """What to run."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the process we started answers."""

    def _start(self) -> None:
        self._owner_lock.take()
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._stop_at_exit()
            self._take_over()
            account = account_for(self.home)
            self._claim_home(account)
            self._prepare(account)
            self._launch(account)
            undo.pop_all()

    def _stop_at_exit(self) -> None:
        atexit.unregister(self.stop)  # a start after a kill must not pile them up
        atexit.register(self.stop)

    def _claim_home(self, account: Account) -> None:
        if not self.home.exists():
            account.make_private(self.home)
        elif (owner := self.home.lstat().st_uid) == 0:
            account.own(self.home)
        elif owner != account.uid:
            raise EmbeddedError(
                f"{self.home} belongs to user {owner}, from a start by root:"
                " choose another folder (TASKSVC_STATE_DIR), or remove this one as root"
            )

    def _launch(self, account: Account) -> None:
        doors = Doors(account)
        try:
            self._process = self._spawn(self._command(account, doors), account, doors)
            self._lifeline.note(self._process.pid)
        finally:
            doors.close()
            self._lifeline.let_go()
        self._await_ready(self._process)

    def _spawn(self, command: Command, account: Account, doors: Doors) -> subprocess.Popen[bytes]:
        assert self._lifeline.descriptor is not None
        output = self.log.open()
        try:
            return spawn(command, account, output, [self._lifeline.descriptor, *doors.descriptors])
        except PermissionError as error:
            raise EmbeddedError(
                f"{self.title} may not be run as user {account.uid} ({error.strerror}):"
                " start tasksvc as an ordinary user, or point it to running servers"
            ) from error
        finally:
            os.close(output)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if process.poll() is not None:
                raise EmbeddedError(
                    f"{self.title} ended at its start: {self.log.tail()} (see {self.log.path})"
                )
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.title} is not ready after {START_SECONDS:.0f} seconds:"
                    f" {self.log.tail()} (see {self.log.path})"
                )
            time.sleep(POLL_SECONDS)

    def _take_over(self) -> None:
        """Have the folder to ourselves: an owner killed with -9 may have left a server."""
        if self._lifeline.seize():
            return
        self._announce(f"Stopping the {self.title} that an earlier run left in {self.state_dir}")
        if orphan := self._lifeline.noted_alive():
            send(orphan, signal.SIGCONT, self.stop_signal)
            if self._lifeline.seize(STOP_SECONDS):
                return
            _kill_family(orphan)
        self._kill_holders()

    def _await_end_of_family(self) -> None:
        if not self._lifeline.seize(1.0):
            self._kill_holders()
        self._lifeline.let_go()

    def _kill_holders(self) -> None:
        for pid in holders_of(self._lifeline.path):
            send(pid, signal.SIGKILL)
        if not self._lifeline.seize(GONE_SECONDS):
            raise EmbeddedError(
                f"Processes of an earlier {self.title} still use {self.home}:"
                " end them, or choose another folder (TASKSVC_STATE_DIR)"
            )


def _kill_family(pid: int) -> None:
    # Frozen first, so that it can neither fork another child nor give a child's pid away.
    send(pid, signal.SIGSTOP)
    for child in children_of(pid):
        send(child, signal.SIGKILL)
    send(pid, signal.SIGKILL)
