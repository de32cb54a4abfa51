"""The service as a process, and a small client of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasksvc.domain.task import FINAL

_START_SECONDS = 60.0
"""With its servers, for the first time, on a machine that has more to do."""

_POLL_SECONDS = 0.01

_OURS = ("TASK_", "TASKSVC_", "REDIS_")

_OURS_ALONE = frozenset(
    {"APP_ENV", "DATABASE_URL", "HOST", "LOG_FILE_PATH", "LOG_LEVEL", "PORT", "PYTHONPATH"}
)

# It is on this machine: a proxy that the environment names is for others.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class ServiceProcess:
    """`tasksvc run`, in a folder and an environment of its own."""

    def __init__(
        self, folder: Path, env: dict[str, str], command: Sequence[str] | None = None
    ) -> None:
        self.folder = folder
        self.env = env
        self.command = command or [sys.executable, "-m", "tasksvc", "run"]
        self.port = int(env["PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = folder / "output.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Starts, and waits until it says that it is ready."""
        self.spawn()
        self.wait_for_line("Ready")

    def spawn(self, stdin: int = subprocess.DEVNULL) -> None:
        with self._output.open("ab") as output:
            self._start_of_run = output.tell()
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=stdin,
                stdout=output,
                stderr=output,
                close_fds=True,
            )

    def output(self) -> str:
        """What this run has said on the terminal."""
        return self._output.read_bytes()[self._start_of_run :].decode("utf-8", "replace")

    def wait_for_line(self, text: str, within_seconds: float = 30.0) -> None:
        deadline = time.monotonic() + within_seconds
        while text not in self.output():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"never said {text!r}:\n{self.output()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, number: int = signal.SIGTERM, within_seconds: float = 30.0) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(within_seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Leaves nothing behind, whatever the test did."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, whatever the status."""
        request = urllib.request.Request(
            self.url + path, data=body, method=method, headers=headers or {}
        )
        try:
            with _open(request, timeout=15) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def create(self, content: str = "x", **options: object) -> dict[str, Any]:
        """A new task, with the options that `POST /task` takes."""
        body = json.dumps({"content": content, **options}).encode()
        headers = {"Content-Type": "application/json"}
        return self._task(201, "POST", "/task", body, headers)

    def task(self, id: str) -> dict[str, Any]:
        """The task as it is now."""
        return self._task(200, "GET", f"/task/{id}")

    def wait(self, id: str, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """The task, once it is final. Raises AssertionError when it is not in time."""
        deadline = time.monotonic() + timeout_seconds
        while (task := self.task(id))["status"] not in FINAL:
            if time.monotonic() > deadline:
                raise AssertionError(f"not final within {timeout_seconds:g} s: {task}")
            time.sleep(_POLL_SECONDS)
        return task

    def _task(self, expected: int, *request: Any) -> dict[str, Any]:
        status, _, body = self.request(*request)
        if status != expected:
            raise AssertionError(f"{status}: {body.decode()}")
        task: dict[str, Any] = json.loads(body)
        return task


@contextmanager
def run_service(*handlers: str, **variables: object) -> Iterator[ServiceProcess]:
    """A service that serves the kinds of these modules, on a PostgreSQL and a Redis of its own.

    Its modules are found where ours are, failed attempts are tried again at once, and `variables`
    are its environment. It works in a temporary folder, and ends with this process, however that
    ends. Raises AssertionError with what it said when it does not start.
    """
    defaults: dict[str, object] = {
        "PORT": free_port(),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in sys.path),
        "TASKSVC_HANDLERS": ",".join(handlers),
        "TASKSVC_GRACE_SECONDS": 0,
        "TASK_RETRY_BASE_SECONDS": 0,
        "TASK_SIMULATED_SECONDS": 0,
    }
    env = clean_environment(**(defaults | variables))
    command = [sys.executable, "-m", "tasksvc.testing.child"]
    with TemporaryDirectory(prefix="tasksvc-") as folder, _lifeline() as lifeline:
        service = ServiceProcess(Path(folder), env, command)
        service.spawn(stdin=lifeline)
        try:
            service.wait_for_line("Ready", _START_SECONDS)
            yield service
        finally:
            with suppress(subprocess.TimeoutExpired):
                service.stop()  # and its servers
            service.end()


def clean_environment(**variables: object) -> dict[str, str]:
    """The environment of a process without settings of this service, except the given ones."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OURS) and name not in _OURS_ALONE
    }
    return env | {name: str(value) for name, value in variables.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe that is at its end once this process is gone."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)
