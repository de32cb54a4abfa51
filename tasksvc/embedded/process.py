"""Starting a program that must not outlive its owner, and looking at processes."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tasksvc.embedded.account import Account

_PR_SET_PDEATHSIG = 1

_KEPT = ("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True)
class Command:
    arguments: Sequence[str]
    #: What to execute when that is not the first argument.
    executable: str | None = None
    folder: Path = Path("/")
    #: Sent to it by the kernel when its owner is gone.
    death_signal: signal.Signals = signal.SIGKILL
    #: What its environment has besides `environment`.
    variables: Mapping[str, str] = field(default_factory=dict)


def spawn(
    command: Command, account: Account, output: int, inherits: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that Ctrl-C reaches only us.

    The folder is entered before the user changes, and the death signal is asked for after
    that, because the kernel forgets it when a process changes its user.
    """
    return subprocess.Popen(
        command.arguments,
        executable=command.executable,
        cwd=command.folder,
        env=environment() | dict(command.variables),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        close_fds=True,
        pass_fds=inherits,
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
        preexec_fn=_die_with_owner(command.death_signal),
    )


def environment() -> dict[str, str]:
    """What a server needs of ours. Its user may read its environment, so no secret goes there;
    and PGDATA, PGPORT and the like are meant for another server."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | {"LC_ALL": "C"}


def _die_with_owner(death_signal: signal.Signals) -> Callable[[], None] | None:
    # The kernel watches the thread that forks, not the process: only the main thread lasts.
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    owner = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != owner:  # gone before we asked
            os._exit(1)

    return ask


def send(pid: int, *signals: signal.Signals) -> None:
    for each in signals:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, each)


def birth_of(pid: int) -> str:
    """Returns when it began, which distinguishes it from a later process with the same pid; "-" if
    unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "-"


def children_of(pid: int) -> list[int]:
    return [each for each in _processes() if _parent_of(each) == pid]


def holders_of(path: Path) -> list[int]:
    """Returns the processes that have `path` open, as far as this user may see."""
    target = str(path.resolve())
    return [each for each in _processes() if each != os.getpid() and _has_open(each, target)]


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _has_open(pid: int, target: str) -> bool:
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(descriptor) == target:
                    return True
    return False
