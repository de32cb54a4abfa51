"""The contracts of import-linter must notice what breaks the layers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Returns a copy of the package and of the contracts."""
    ignored = shutil.ignore_patterns("__pycache__", "migrations")
    shutil.copytree(ROOT / "tasksvc", tmp_path / "tasksvc", ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def broken_contracts(folder: Path) -> str:
    """Returns what import-linter prints when a contract is broken, and "" when none is."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_contracts_hold(copy: Path) -> None:
    assert broken_contracts(copy) == ""


def test_a_package_in_no_layer_breaks_them(copy: Path) -> None:
    package = copy / "tasksvc" / "dashboard"
    package.mkdir()
    (package / "__init__.py").write_text("import redis\n")

    assert "tasksvc.dashboard" in broken_contracts(copy)


def test_a_service_in_no_layer_breaks_them(copy: Path) -> None:
    (copy / "tasksvc" / "services" / "webhooks.py").write_text("")

    assert "tasksvc.services.webhooks" in broken_contracts(copy)


@pytest.mark.parametrize("module", ["store.database", "stream.task_stream", "consumers.consumer"])
def test_a_web_module_that_passes_the_services_breaks_them(copy: Path, module: str) -> None:
    path = copy / "tasksvc" / "web" / "routes.py"
    path.write_text(path.read_text() + f"\nimport tasksvc.{module}\n")

    assert f"tasksvc.web.routes -> tasksvc.{module}" in broken_contracts(copy)
