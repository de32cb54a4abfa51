"""The command line, as a person or an orchestrator uses it: a clear line, and an exit code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasksvc import __version__
from tasksvc.cli.main import main
from tasksvc.testing.process import clean_environment
from tests.harness import ROOT, ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

Start = Callable[..., ServiceProcess]


@pytest.fixture
def tasksvc(
    environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command to its end, with the test's servers unless other variables are given."""

    def run(*words: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tasksvc", *words],
            cwd=tmp_path,
            env=environment | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


Tasksvc = Callable[..., subprocess.CompletedProcess[str]]


def test_help_names_the_commands() -> None:
    done = CliRunner().invoke(main, ["--help"])

    assert done.exit_code == 0
    for command in ("run", "migrate", "health"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(main, ["rnu"])

    assert done.exit_code == 2
    assert "No such command 'rnu'" in done.output


def test_version() -> None:
    done = CliRunner().invoke(main, ["--version"])

    assert done.exit_code == 0
    assert done.stdout == f"tasksvc, version {__version__}\n"


@pytest.mark.parametrize("command", ["run", "migrate", "health"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "http"),
        ("LOG_LEVEL", "loud"),
        ("DATABASE_URL", "mysql://root:canary-7f3a@db"),
        ("REDIS_URL", "redis://:canary-7f3a@redis:x"),
        ("TASK_CONSUMER_WORKERS", "many"),
        ("TASKSVC_HTTP", "maybe"),
    ],
)
def test_wrong_setting_ends_a_command_with_one_line(
    command: str, variable: str, value: str
) -> None:
    done = CliRunner().invoke(main, [command], env={variable: value})

    assert done.exit_code == 1
    assert re.fullmatch(rf"Error: {variable}: [^\n]+\n", done.output)
    assert "canary-7f3a" not in done.output


async def test_wrong_setting_ends_the_process_with_one_line(tasksvc: Tasksvc) -> None:
    done = tasksvc("run", PORT="http")

    assert done.returncode == 1
    assert done.stderr == "Error: PORT: Not a valid integer.\n"
    assert done.stdout == ""


@pytest.mark.parametrize("path", ["", "file/app.log", "file/folder/app.log"])
def test_log_file_that_cannot_be_written_ends_a_command_with_one_line(
    tmp_path: Path, path: str
) -> None:
    (tmp_path / "file").touch()

    done = CliRunner().invoke(main, ["run"], env={"LOG_FILE_PATH": str(tmp_path / path)})

    assert done.exit_code == 1
    assert re.fullmatch(r"Error: LOG_FILE_PATH: [^\n]+\n", done.output)


async def test_port_in_use_stops_the_start_with_a_clear_line(
    tasksvc: Tasksvc, environment: dict[str, str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        done = tasksvc("run", PORT=port)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: HOST, PORT: can't listen on 127.0.0.1:{port}: ")
    assert "Traceback" not in done.stderr
    # It leaves as cleanly as it came.
    assert query(environment["DATABASE_URL"], "SELECT * FROM worker") == []


async def test_migrate_makes_the_schema_once(tasksvc: Tasksvc, database_url: str) -> None:
    query(database_url, "DROP SCHEMA public CASCADE")
    query(database_url, "CREATE SCHEMA public")

    without_redis = {"REDIS_URL": "redis://127.0.0.1:1"}
    first, second = tasksvc("migrate", **without_redis), tasksvc("migrate", **without_redis)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "0001_baseline.sql" in first.stdout.splitlines()
    assert second.stdout == "The schema is up to date.\n"
    assert query(database_url, "SELECT count(*) FROM task") == [(0,)]


async def test_migrate_without_postgres_fails_with_a_clear_line(tasksvc: Tasksvc) -> None:
    done = tasksvc("migrate", DATABASE_URL="postgresql://u:canary-7f3a@127.0.0.1:1/x")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: PostgreSQL does not answer")
    assert "Traceback" not in done.stderr
    assert "canary-7f3a" not in done.stderr


def ask_for_health(port: int, host: str = "127.0.0.1") -> Result:
    return CliRunner().invoke(main, ["health"], env={"PORT": str(port), "HOST": host})


async def test_health_tells_by_its_exit_code(start_service: Start, tasksvc: Tasksvc) -> None:
    service = start_service(TASK_SIMULATED_SECONDS=60, TASKSVC_GRACE_SECONDS=60)
    service.create()
    await eventually(lambda: service.metric("tasksvc_running") == 1)

    for host in ("127.0.0.1", "localhost", "0.0.0.0", ""):
        well = ask_for_health(service.port, host)
        assert well.exit_code == 0
        assert json.loads(well.stdout) == {"status": "ok"}

    service.process.send_signal(signal.SIGTERM)
    service.wait_for_line("Stopping")
    _, _, body = service.get("/health")
    assert json.loads(body) == {"status": "unavailable", "problems": ["stopping"]}
    stopping = tasksvc("health", PORT=service.port)
    assert stopping.returncode == 1
    assert stopping.stderr == f"Error: {body.decode()}\n"

    service.kill()
    gone = ask_for_health(service.port)
    assert gone.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+\n", gone.stderr)


async def test_health_asks_the_service_and_no_proxy(
    shared_service: ServiceProcess, tasksvc: Tasksvc
) -> None:
    done = tasksvc("health", PORT=shared_service.port, http_proxy="http://127.0.0.1:1")

    assert done.returncode == 0


async def test_health_of_what_does_not_speak_http() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def talk_nonsense() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        talking = asyncio.create_task(asyncio.to_thread(talk_nonsense))
        done = await asyncio.to_thread(ask_for_health, other.getsockname()[1])
        await talking

    assert done.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)


async def test_one_process_serves_only_and_another_consumes_only(start_service: Start) -> None:
    front = start_service(TASK_CONSUMER_WORKERS=0)
    id = front.create()["id"]
    back = start_service(TASKSVC_HTTP="off")

    await eventually(lambda: front.task(id)["status"] == "completed")

    assert front.metric("task_processing_success_count") == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", back.port))
    assert "http://" not in back.output()
    assert back.stop() == 0


async def test_http_ops_has_no_tasks_and_port_0_takes_any(
    environment: dict[str, str], tmp_path: Path
) -> None:
    service = ServiceProcess(tmp_path, environment | {"TASKSVC_HTTP": "ops", "PORT": "0"})
    try:
        service.start()
        found = re.search(r"Ready on=(http://127\.0\.0\.1:\d+)", service.output())
        assert found
        service.url = found[1]

        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert service.get(path)[0] == 200
        assert service.request("POST", "/task", b"{}")[0] == 404
        assert service.get("/task/00000000-0000-4000-8000-000000000000")[0] == 404
    finally:
        service.end()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        (
            "import threading; threading.Thread(target=threading.Event().wait).start(); 1 / 0",
            "Zero",
        ),
    ],
)
def test_handlers_that_are_not_imported_end_the_start_before_a_server(
    tasksvc: Tasksvc, tmp_path: Path, code: str, reason: str
) -> None:
    (tmp_path / "broken.py").write_text(code)

    done = tasksvc("run", TASKSVC_HANDLERS="broken", DATABASE_URL="", REDIS_URL="")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: TASKSVC_HANDLERS: broken can't be imported: {reason}")
    assert not (tmp_path / ".tasksvc").exists()


async def test_error_of_handlers_that_closed_the_terminal_is_in_the_log(
    tasksvc: Tasksvc, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import sys; sys.stderr.close(); 1 / 0")

    done = tasksvc("run", TASKSVC_HANDLERS="broken")

    assert done.returncode == 1
    assert "broken can't be imported" in (tmp_path / "logs" / "app.log").read_text()


async def test_modules_may_use_asyncio_when_they_are_imported(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "early.py").write_text(
        "import asyncio\n"
        "from tasksvc import handler\n"
        "VALUE = asyncio.run(asyncio.sleep(0, 5))\n"
        "@handler('early')\n"
        "async def early(content, ctx):\n"
        "    return VALUE\n"
    )
    service = ServiceProcess(tmp_path, environment | {"TASKSVC_HANDLERS": "early"})
    try:
        service.start()
        id = service.create(kind="early")["id"]
        await eventually(lambda: service.task(id)["status"] == "completed")
        assert service.task(id)["result"] == 5
    finally:
        service.end()


async def test_service_runs_with_closed_standard_streams(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["sh", "-c", f"exec {sys.executable} -m tasksvc run <&- >&- 2>&-"]
    service = ServiceProcess(tmp_path, environment, command)
    service.spawn()
    try:
        await eventually(
            lambda: service.log_path.exists() and "Ready" in service.log_path.read_text()
        )
        id = service.create()["id"]
        await eventually(lambda: service.task(id)["status"] == "completed")
        assert service.stop() == 0
        assert service.output() == ""
    finally:
        service.end()


async def test_start_says_little_and_the_url_last(tmp_path: Path, free_port: int) -> None:
    service = ServiceProcess(
        tmp_path, clean_environment(PORT=free_port, TASK_CONSUMER_WORKERS=0, LOG_LEVEL="info")
    )
    try:
        service.start()
        lines = service.output().splitlines()
        assert f"Ready on={service.url}" in "".join(lines[-3:])
        assert sum("Migrations applied" in line for line in lines) == 1
        assert len(lines) <= 12
        assert service.stop() == 0
    finally:
        service.end()


def test_state_folder_that_cannot_be_is_one_line_with_its_variable(
    tasksvc: Tasksvc, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    done = tasksvc("run", DATABASE_URL="", TASKSVC_STATE_DIR=tmp_path / "file")

    assert done.returncode == 1
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("Error: ")]
    assert "TASKSVC_STATE_DIR" in line
    assert "Traceback" not in done.stderr


def spawn_in_a_group_of_its_own(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "terminal.txt").open("wb") as terminal:
        return subprocess.Popen(
            [sys.executable, "-m", "tasksvc", "run"],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )


async def test_embedded_servers_keep_their_data(tmp_path: Path, free_port: int) -> None:
    """Also over a kill -9, and a Ctrl-C that reaches the whole process group."""
    env = clean_environment(
        PORT=free_port,
        TASK_SIMULATED_SECONDS=0,
        TASKSVC_LEASE_SECONDS=2,
        TASKSVC_STATE_DIR=tmp_path / "state",
    )
    service = ServiceProcess(tmp_path, env)
    try:
        service.start()
        first = service.create("first")["id"]
        service.kill()

        service.start()
        assert service.task(first)["content"] == "first"
        await eventually(lambda: service.task(first)["status"] == "completed")
        second = service.create("second")["id"]
        await eventually(lambda: service.task(second)["status"] == "completed")
        assert service.stop(signal.SIGINT) == 0
        assert "Traceback" not in service.output()

        foreground = spawn_in_a_group_of_its_own(tmp_path, env)
        said = (tmp_path / "terminal.txt").read_text
        try:
            await eventually(lambda: "Ready" in said())
            assert service.task(first)["status"] == "completed"
            assert service.task(second)["content"] == "second"
            os.killpg(foreground.pid, signal.SIGINT)
            assert foreground.wait(30) == 0
        finally:
            foreground.kill()
            foreground.wait()
        assert "Stopped" in said()
        assert "Traceback" not in said()
        assert "[error" not in said()
    finally:
        service.end()


@pytest.mark.parametrize("command", ["run", "migrate"])
async def test_broken_migration_is_one_clear_line(
    environment: dict[str, str], tmp_path: Path, command: str
) -> None:
    broken = tmp_path / "tasksvc" / "migrations" / "0002_broken.sql"
    shutil.copytree(ROOT / "tasksvc", tmp_path / "tasksvc", symlinks=False)
    broken.write_text("CREATE TABL x ();")
    env = environment | {"PYTHONPATH": str(tmp_path)}

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tasksvc", command],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert done.returncode == 1
    assert "Error: 0002_broken.sql can't be applied: syntax error" in done.stderr
    assert "Traceback" not in done.stderr
