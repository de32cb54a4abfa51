"""What is set up wrongly is said: in one line when it ends the start, in the log otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tasksvc.embedded import EmbeddedPostgres
from tests.conftest import database_named
from tests.harness import ServiceProcess, eventually, query

pytestmark = pytest.mark.slow

SECRET = "canary-7f3a"

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., ServiceProcess]


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a command to its end."""

    def run(command: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tasksvc", command],
            cwd=tmp_path,
            env=environment | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pytest.fixture
def latin_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    query(
        postgres.url,
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    yield database_named(postgres.url, "latin")
    query(postgres.url, "DROP DATABASE latin WITH (FORCE)")


def test_what_postgres_refuses_for_good_ends_the_start(
    run: Run, postgres: EmbeddedPostgres, latin_url: str
) -> None:
    url = postgres.url.replace("//postgres@", f"//postgres:{SECRET}@")
    cases = [
        ("run", database_named(url, "nowhere"), 'database "nowhere" does not exist'),
        ("run", latin_url, "the database's encoding is LATIN1, and must be UTF8"),
        ("migrate", url.replace("//postgres:", "//nobody:"), 'role "nobody" does not exist'),
    ]
    for command, each, reason in cases:
        done = run(command, DATABASE_URL=each)

        assert done.returncode == 1
        assert f"Error: DATABASE_URL: {reason}." in done.stderr.splitlines()
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stdout + done.stderr


async def test_start_waits_for_postgres_and_says_why(
    start_service: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"postgresql://u:{SECRET}@no-such-host.invalid/d"
    service = ServiceProcess(tmp_path, environment | {"DATABASE_URL": url})
    service.spawn()
    try:
        service.wait_for_line("Waiting for PostgreSQL")
        line = next(each for each in service.events() if each.get("action") == "waits_for_postgres")
        assert line["reason"].startswith("the name of its host can't be resolved: ")
        assert service.stop() == 0
    finally:
        service.end()
    assert SECRET not in service.output()


@pytest.mark.parametrize(
    ("database", "reason"), [(99, "DB index is out of range"), (0, "WRONGPASS")]
)
async def test_redis_that_refuses_is_an_error_and_tasks_go_on(
    start_service: Start,
    environment: dict[str, str],
    redis_client: redis.Redis,
    database: int,
    reason: str,
) -> None:
    user = ""
    if reason == "WRONGPASS":
        user = f"nobody:{SECRET}@"
        reason = "invalid username-password pair or user is disabled."
    path = urlsplit(environment["REDIS_URL"]).path
    service = start_service(REDIS_URL=f"unix://{user}{path}?db={database}")

    (down,) = [each for each in service.events() if each.get("action") == "redis_down"]
    assert down["level"] == "error"
    assert down["reason"] == reason
    id = service.create()["id"]
    await eventually(lambda: service.task(id)["status"] == "completed")
    assert SECRET not in service.output()


async def test_what_has_no_effect_is_a_warning(start_service: Start) -> None:
    service = start_service(TASKSVC_GRACE_SECOND=7)

    warnings = [each["event"] for each in service.events() if each.get("action") == "settings"]
    assert warnings == [
        "TASKSVC_GRACE_SECOND is unknown, and has no effect. Is TASKSVC_GRACE_SECONDS meant?"
    ]


async def test_private_server_beside_a_named_one_is_a_warning(start_service: Start) -> None:
    service = start_service(REDIS_URL="", REDIS_HOST="")

    (warning,) = [each for each in service.events() if each.get("action") == "private_server"]
    assert warning["level"] == "warning"
    assert warning["event"].startswith("REDIS_HOST is not set: starts a private Redis")
