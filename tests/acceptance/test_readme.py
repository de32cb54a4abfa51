"""What the README says is true."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tasksvc.settings import Settings
from tasksvc.testing.process import clean_environment
from tests.harness import ROOT, ServiceProcess, eventually, write_python_of_the_readme

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text("utf-8")

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")


def test_first_task_goes_as_it_is_shown(start_service: Callable[..., ServiceProcess]) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60)
    (console,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    shown = re.findall(r"^\$ (.*)\n(.*)$", console, re.MULTILINE)
    shown_id = json.loads(shown[0][1])["id"]
    id = shown_id

    for command, output in shown:
        command = command.replace("http://127.0.0.1:8000", service.url).replace(shown_id, id)
        answer = subprocess.run(shlex.split(command), capture_output=True, check=True, text=True)
        task, expected = json.loads(answer.stdout), json.loads(output)
        id = task["id"]

        assert list(task) == list(expected)
        assert task["content"] == expected["content"]
        # Whether it is claimed by the second look is a race that the reader may lose too.
        assert task["status"] in {expected["status"], "pending"}


async def test_handler_goes_as_it_is_shown(environment: dict[str, str], tmp_path: Path) -> None:
    """In the folder that the module is in, with the command of the package and no other path."""
    write_python_of_the_readme(tmp_path)
    (commands,) = re.findall(
        r"```sh\n(.*?)```", README.partition("## Tasks of your own")[2], re.DOTALL
    )
    run, create = commands.splitlines()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = environment | {"PATH": programs, "PYTHONPATH": ""}
    service = ServiceProcess(tmp_path, env, ["sh", "-c", run])
    try:
        service.start()
        command = create.replace("http://127.0.0.1:8000", service.url)
        answer = await asyncio.to_thread(
            subprocess.run, shlex.split(command), capture_output=True, check=True, text=True
        )
        id = json.loads(answer.stdout)["id"]
        await eventually(lambda: service.task(id)["status"] == "completed")
        assert service.task(id)["result"] == {"width": 200}
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(service.process.pid).children():
                process.terminate()  # the shell passes nothing on
        code = service.process.wait(30)
    assert code == 0


def test_tests_go_as_they_are_shown(tmp_path: Path) -> None:
    """With warnings as errors, as a project may have them."""
    write_python_of_the_readme(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=tmp_path,
        # The plugins of this environment complain about options that they do not know.
        env=clean_environment(PYTHONPATH=ROOT, PYTEST_DISABLE_PLUGIN_AUTOLOAD=1),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_table_of_the_environment_has_every_variable_with_its_default() -> None:
    source = (ROOT / "tasksvc" / "settings.py").read_text("utf-8")
    read = dict(re.findall(r'env\.\w+\(\s*"([A-Z_]+)",\s*([^,)]+)', source))
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", CONFIGURATION, re.MULTILINE))

    assert set(table) == set(read)
    for name, default in table.items():
        if default.startswith("`") and default.endswith("`"):
            assert default.strip("`") == str(ast.literal_eval(read[name])), name


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)`?", README))
def test_make_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")

    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link.partition("#")[0]).exists()


def test_environment_files_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".env.dev", ".env.test"):
        lines = (ROOT / name).read_text("utf-8").splitlines()
        variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        with monkeypatch.context() as context:
            for variable, value in clean_environment(**variables).items():
                context.setenv(variable, value)
            assert Settings.from_env().database_url
