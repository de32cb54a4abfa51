"""What tests are built with: waiting without sleeping, and the service as a process."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg2

ROOT = Path(__file__).parent.parent

DEADLINE_SECONDS = 15.0


def ago(seconds: float) -> float:
    """That moment, as `time.monotonic` tells it."""
    return time.monotonic() - seconds


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]], within_seconds: float = DEADLINE_SECONDS
) -> Any:
    """The first true value of the condition; AssertionError if there is none in time."""
    deadline = time.monotonic() + within_seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_seconds} s: {inspect.getsource(condition)}")
        await asyncio.sleep(0.01)


def query(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement, over a connection of its own."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


class ServiceProcess:
    """`python -m tasksvc run` as a process of its own."""

    def __init__(self, folder: Path, env: dict[str, str], command: list[str] | None = None) -> None:
        self.folder = folder
        self.env = {"PYTHONPATH": str(ROOT), **env}
        self.command = command or [sys.executable, "-m", "tasksvc", "run"]
        self.port = int(env["PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / "logs" / "app.log"
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

    def spawn(self) -> None:
        with self._output.open("ab") as output:
            self._start_of_run = output.tell()
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                close_fds=True,
            )

    def output(self) -> str:
        """What this run has said on the terminal."""
        return self._output.read_bytes()[self._start_of_run :].decode("utf-8", "replace")

    def events(self) -> list[dict[str, Any]]:
        """The lines of its log file."""
        return [json.loads(line) for line in self.log_path.read_text("utf-8").splitlines()]

    def wait_for_line(self, text: str, within_seconds: float = DEADLINE_SECONDS) -> None:
        deadline = time.monotonic() + within_seconds
        while text not in self.output():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"never said {text!r}:\n{self.output()}")
            time.sleep(0.01)

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

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.request("GET", path)

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
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def create(self, content: str = "x") -> dict[str, Any]:
        status, _, body = self.request(
            "POST",
            "/task",
            json.dumps({"content": content}).encode(),
            {"Content-Type": "application/json"},
        )
        assert status == 201, (status, body)
        return json.loads(body)

    def task(self, id: str) -> dict[str, Any]:
        status, _, body = self.get(f"/task/{id}")
        assert status == 200, (status, body)
        return json.loads(body)

    def statuses(self, ids: Iterable[str]) -> set[str]:
        return {self.task(id)["status"] for id in ids}

    def metric(self, name: str) -> float:
        """One series of /metrics, by its name and labels as they are written there."""
        _, _, body = self.get("/metrics")
        for line in body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")


def clean_environment(**variables: object) -> dict[str, str]:
    """The environment of a process without a setting of ours that nobody asked for."""
    ours = ("TASK", "DATABASE_URL", "REDIS_", "LOG_", "APP_ENV", "HOST", "PORT", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return env | {name: str(value) for name, value in variables.items()}
