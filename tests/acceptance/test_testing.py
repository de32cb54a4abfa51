"""A service of one's own, for tests of handlers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasksvc.testing import ServiceProcess, run_service, service_fixture
from tasksvc.testing.process import clean_environment
from tests.harness import DEADLINE_SECONDS, ROOT

pytestmark = pytest.mark.slow

shop_service = service_fixture("tests.handlers.shop", TASK_MAX_ATTEMPTS=2)


def family_of(pid: int) -> list[psutil.Process]:
    """A service and its servers."""
    service = psutil.Process(pid)
    return [service, *service.children(recursive=True)]


def alive_of(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end in time."""
    _, alive = psutil.wait_procs(family, DEADLINE_SECONDS)
    return alive


def test_task_is_created_and_waited_for(shop_service: ServiceProcess) -> None:
    task = shop_service.create("you", kind="greet", timeout_seconds=30)

    final = shop_service.wait(task["id"])

    assert final["status"] == "completed"
    assert final["result"]["hello"] == "you"


def test_process_is_a_process_of_its_own(shop_service: ServiceProcess) -> None:
    final = shop_service.wait(shop_service.create(kind="whereabouts-process")["id"])

    assert final["result"]["pid"] not in (shop_service.process.pid, os.getpid())


def test_failed_task_is_final_soon(shop_service: ServiceProcess) -> None:
    final = shop_service.wait(shop_service.create("why", kind="fail")["id"])

    assert final["error"] == {"type": "Unheard", "message": "why", "attempt": 2}


def test_client_says_what_was_refused(shop_service: ServiceProcess) -> None:
    with pytest.raises(AssertionError, match=r"^422: .*/kind"):
        shop_service.create(kind="unknown-kind")
    with pytest.raises(AssertionError, match=r"^404: "):
        shop_service.task("unknown-kind")


def test_task_that_takes_too_long(shop_service: ServiceProcess) -> None:
    id = shop_service.create("60", kind="sleep")["id"]

    with pytest.raises(AssertionError, match=r"not final within 0.05 s: .*'content': '60'"):
        shop_service.wait(id, timeout_seconds=0.05)


def test_servers_and_folder_go_with_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a developer works on is not what the tests work on.
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/precious")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with run_service() as service:
        family = family_of(service.process.pid)
        assert service.wait(service.create()["id"])["status"] == "completed"

    assert len(family) >= 3
    assert not service.folder.exists()
    assert alive_of(family) == []


def test_service_that_does_not_start_says_why() -> None:
    with pytest.raises(AssertionError, match=r"no\.such can't be imported"), run_service("no.such"):
        pass


def test_service_ends_with_the_tests_however_they_end(tmp_path: Path) -> None:
    source = """
import time
from tasksvc.testing import run_service
with run_service() as service:
    print(service.process.pid, flush=True)
    time.sleep(60)
"""
    tests = subprocess.Popen(
        [sys.executable, "-c", source],
        env=clean_environment(PYTHONPATH=ROOT, TMPDIR=tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with tests:
        assert tests.stdout is not None
        family = family_of(int(tests.stdout.readline()))
        tests.kill()

    assert len(family) >= 3
    assert alive_of(family) == []
