"""The processes of a run. Each is ended by its pid, whatever happens to us."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]

_START_SECONDS = 20.0
_STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


class BenchError(Exception):
    """The run can't go on; one line says why."""


class Child:
    """A program of this repository with a port, in a session of its own: Ctrl-C is ours alone."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        folder: Path,
        program: Path | str = sys.executable,
        **variables: object,
    ) -> None:
        self.port = _free_port()
        self._name = name
        self._program = program
        self._arguments = [each.format(port=self.port) for each in arguments]
        self._folder = folder
        self._output = folder / f"{name}.txt"
        self._env = _environment({"PORT": self.port, **variables})
        self.started_in_seconds = 0.0

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        started_at = time.perf_counter()
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, *self._arguments],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_us,
            )
        try:
            self._await_health(started_at + _START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.started_in_seconds = time.perf_counter() - started_at
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def last_words(self) -> str:
        said = self._output.read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "silence"

    @property
    def resident_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def peak_resident_bytes(self) -> int:
        """The most that it ever had; where the kernel does not tell, what it has now."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return self.resident_bytes
        kilobytes = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kilobytes[1]) * 1024 if kilobytes else self.resident_bytes

    def get(self, path: str) -> tuple[int, str]:
        """Status and body. Raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """One series of /metrics, by its name and labels as they are written there."""
        _, body = self.get("/metrics")
        for line in body.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise BenchError(f"{self._name} has no metric {name}.")

    def _await_health(self, deadline: float) -> None:
        while True:
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise BenchError(f"{self._name} did not start: {self.last_words}")
            time.sleep(0.005)


def service(
    name: str,
    folder: Path,
    tree: Path = ROOT,
    command: tuple[str, ...] = ("tasksvc", "run"),
    **variables: object,
) -> Child:
    """The service of a source tree, as it runs in production but for what a test needs."""
    settings: dict[str, Any] = {"LOG_LEVEL": "info", "TASK_SIMULATED_SECONDS": 0, **variables}
    return Child(name, ["-m", *command], folder, PYTHONPATH=tree, **settings)


def migrate(database_url: str, folder: Path) -> None:
    """Brings a database up to date, and ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tasksvc", "migrate"],
        cwd=folder,
        env=_environment({"PYTHONPATH": ROOT, "DATABASE_URL": database_url}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise BenchError(f"The database was not migrated: {done.stderr.strip()[-200:]}")


def echo(folder: Path, content_bytes: int) -> Child:
    arguments = ["-m", "ops.bench.echo", "{port}", str(content_bytes)]
    return Child(f"echo-{content_bytes}", arguments, folder, PYTHONPATH=ROOT)


def load(
    *ports: int,
    requests: list[str],
    status: int,
    connections: int,
    seconds: float,
    rate: float | None = None,
) -> dict[str, Any]:
    """What the load found: of a closed loop (see load.py), or of an open one that asks `rate`
    times a second (see paced.py)."""
    order = {
        "ports": ports,
        "requests": requests,
        "status": status,
        "connections": connections,
        "seconds": seconds,
        "rate": rate,
    }
    program = "ops.bench.load" if rate is None else "ops.bench.paced"
    process = subprocess.Popen(
        [sys.executable, "-m", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_die_with_us,
    )
    try:
        output, _ = process.communicate(json.dumps(order).encode(), timeout=seconds + 60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise BenchError("The load generator failed.")
    found: dict[str, Any] = json.loads(output)
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, of its children, and of those of them that have ended."""
    parent = psutil.Process(pid)
    own = parent.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in parent.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)


def _environment(variables: dict[str, object]) -> dict[str, str]:
    """Ours without any setting of the service that nobody asked for."""
    settings = ("TASK", "DATABASE_URL", "REDIS_", "LOG_", "APP_ENV", "HOST", "PORT")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return env | {name: str(value) for name, value in variables.items()}


def _die_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
