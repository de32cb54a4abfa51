"""A private PostgreSQL, reached through a unix socket in a folder of its own."""

import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from tasksvc.embedded.account import Account, Doors
from tasksvc.embedded.binaries import find_postgres
from tasksvc.embedded.copies import runnable_by, version_of
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.process import Command
from tasksvc.embedded.server import Announce, Server, announce_to_log

_SOCKET_NAME = ".s.PGSQL.5432"
_INITDB_SECONDS = 120.0

_SETTINGS = MappingProxyType(
    {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        # A laptop's memory is for other things.
        "shared_buffers": "64MB",
        "logging_collector": "off",
        "max_logical_replication_workers": "0",
    }
)


class EmbeddedPostgres(Server):
    """PostgreSQL with one superuser, `postgres`, which the socket's private folder protects."""

    name = "postgres"
    title = "PostgreSQL"
    # "Fast": ends the sessions, writes a checkpoint, and is gone.
    stop_signal = signal.SIGINT

    def __init__(
        self,
        state_dir: Path,
        *,
        bin_dir: Path | None = None,
        announce: Announce = announce_to_log,
        options: Mapping[str, str] = MappingProxyType({}),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(state_dir, announce, _SOCKET_NAME, variables)
        self._bin_dir = bin_dir
        self._options = dict(options)

    def _prepare(self, account: Account) -> None:
        found = find_postgres(self._bin_dir)
        version = version_of(found)
        self._programs = runnable_by(account, found, version, self.state_dir)
        self._announce(f"PostgreSQL {version} from {self._programs.source}: {found.folder}")
        self._data = self._data_of(version.partition(".")[0])
        if not self._data.exists():
            self._announce(f"First start: making a PostgreSQL database in {self._data}")
            self._initialize(account)
        self._sockets = self._socket_folder.make(account)
        self._clear_leftovers()
        self._url = f"postgresql://postgres@/postgres?host={quote(str(self._sockets))}&port=5432"

    def _command(self, account: Account, doors: Doors) -> Command:
        settings = {
            **_SETTINGS,
            "unix_socket_directories": doors.path(self._sockets),
            **self._options,
        }
        return Command(
            [
                str(self._programs.postgres),
                *("-D", doors.path(self._data)),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            death_signal=self.stop_signal,
            variables=self._variables,
        )

    def _is_ready(self) -> bool:
        lines = _lines(self._data / "postmaster.pid")
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _data_of(self, major: str) -> Path:
        """The data folder of this major: no other major can read it."""
        data = self.home / f"data-{major}"
        others = [each for each in self.home.glob("data-*") if each.suffix != ".new"]
        if data.exists():
            self._refuse_unless(major, data)
        elif others:
            self._refuse_unless(major, others[0])
        return data

    def _refuse_unless(self, major: str, data: Path) -> None:
        written_by = "".join(_lines(data / "PG_VERSION"))[:10]
        if written_by != major:
            raise EmbeddedError(
                f"{data} holds data of PostgreSQL {written_by or '(unknown)'}, and the programs"
                f" are PostgreSQL {major}: set TASKSVC_PG_BIN to the older programs, or choose"
                " another folder (TASKSVC_STATE_DIR), or move these data away"
            )

    def _initialize(self, account: Account) -> None:
        """Make the data under another name, so that a folder that is there is whole."""
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        account.make_private(unfinished)
        doors = Doors(account)
        try:
            process = self._spawn(self._initdb(doors.path(unfinished)), account, doors)
            _finish(process)
        finally:
            doors.close()
        if process.returncode:
            raise EmbeddedError(f"initdb failed: {self.log.tail()} (see {self.log.path})")
        unfinished.rename(self._data)

    def _initdb(self, data: str) -> Command:
        careless = ["--no-sync"] if self._options.get("fsync") == "off" else []
        return Command(
            [
                str(self._programs.initdb),
                *("-D", data),
                *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"),
                *careless,
            ],
            variables=self._variables,
        )

    def _clear_leftovers(self) -> None:
        """Remove the lock files of a server that was killed.

        PostgreSQL takes its pid for alive while it is a zombie that is not reaped, or when
        another process has it now. We hold the lifeline, so we know better.
        """
        for lock in (self._data / "postmaster.pid", self._sockets / f"{_SOCKET_NAME}.lock"):
            if _lines(lock)[:1] == [str(self._lifeline.noted())]:
                lock.unlink()


def _finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_INITDB_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
