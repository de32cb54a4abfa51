"""The shipped ops/supervisord.conf, run by the real supervisord around the real service."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness import ROOT, ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


class Supervised(ServiceProcess):
    """The service with a supervisord above it: `process` is the supervisord."""

    def spawn(self) -> None:
        with self._output.open("ab") as output:
            self._start_of_run = output.tell()
            self._process = subprocess.Popen(
                [BIN / "supervisord", "-c", ROOT / "ops" / "supervisord.conf"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def pids(self) -> list[int]:
        """Of every service that it has started, the first one first."""
        return [int(pid) for pid in re.findall(r"spawned: 'tasksvc' with pid (\d+)", self.output())]

    def end(self) -> None:
        """Kindly, so that it takes the service with it."""
        if self.process.poll() is None:
            self.stop(within_seconds=40)


@pytest.fixture
def supervised(environment: dict[str, str], tmp_path: Path) -> Iterator[Supervised]:
    variables = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TASKSVC_STATE_DIR": str(tmp_path),
        "TASK_SIMULATED_SECONDS": "1",
    }
    supervised = Supervised(tmp_path, environment | variables)
    try:
        supervised.start()
        yield supervised
    finally:
        supervised.end()


async def test_supervisor_restarts_a_killed_service_and_its_task_completes(
    supervised: Supervised,
) -> None:
    task = supervised.create()["id"]
    await eventually(lambda: supervised.statuses([task]) == {"processing"})
    (first,) = supervised.pids()

    os.kill(first, signal.SIGKILL)

    await eventually(lambda: supervised.output().count("Ready") == 2)
    await eventually(lambda: supervised.statuses([task]) == {"completed"})
    assert not psutil.pid_exists(first)
    assert psutil.pid_exists(supervised.pids()[1])


async def test_supervisor_stops_the_service_gracefully(supervised: Supervised) -> None:
    task = supervised.create()["id"]
    await eventually(lambda: supervised.statuses([task]) == {"processing"})
    (pid,) = supervised.pids()

    assert supervised.stop(within_seconds=40) == 0

    assert "stopped: tasksvc (exit status 0)" in supervised.output()
    assert not psutil.pid_exists(pid)
    # What ran was waited for.
    assert query(supervised.env["DATABASE_URL"], "SELECT status FROM task") == [("completed",)]
