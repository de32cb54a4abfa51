"""What tests are built with: waiting without sleeping, and the service as a process."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg2

from tasksvc import testing

ROOT = Path(__file__).parent.parent

DEADLINE_SECONDS = 15.0


def ago(seconds: float) -> float:
    """Returns that moment, in the seconds of `time.monotonic`."""
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


def create_database(url: str, name: str, template: str) -> None:
    """Files are copied in half the time that it takes to log all that is in them."""
    query(url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")


def write_python_of_the_readme(folder: Path) -> None:
    """Each block as the file that its first line names."""
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", readme, re.DOTALL):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)


class ServiceProcess(testing.ServiceProcess):
    """With what tests of the service itself look at."""

    def __init__(self, folder: Path, env: dict[str, str], command: list[str] | None = None) -> None:
        super().__init__(folder, {"PYTHONPATH": str(ROOT), **env}, command)
        self.log_path = folder / "logs" / "app.log"

    def wait_until_logged(self, text: str) -> None:
        """Until both the terminal and the log file have it."""
        self.wait_for_line(text)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.log_path.read_text("utf-8"):
            assert time.monotonic() < deadline, f"never logged: {text}"
            time.sleep(0.01)

    def events(self) -> list[dict[str, Any]]:
        """The lines of its log file."""
        return [json.loads(line) for line in self.log_path.read_text("utf-8").splitlines()]

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.request("GET", path)

    def statuses(self, ids: Iterable[str]) -> set[str]:
        return {self.task(id)["status"] for id in ids}

    def metric(self, name: str) -> float:
        """One series of /metrics, by its name and labels as they are written there."""
        _, _, body = self.get("/metrics")
        for line in body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")
