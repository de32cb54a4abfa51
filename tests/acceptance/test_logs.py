"""The log: JSON lines in a file, readable ones on the terminal, and no secret in either."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from tasksvc import logs
from tasksvc.logs import file, sink
from tests.harness import ServiceProcess, eventually
from tests.wire import Wire, post, request, talk

Start = Callable[..., ServiceProcess]

CANARY = "canary-7f3a"

TERMINAL_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (debug|info|warning|error) +\S.*")


# The service's.


async def test_every_line_is_one_event_and_names_its_request(service: ServiceProcess) -> None:
    created = talk(service.port, post(b'{"content": "x"}', "X-Request-ID: one"))
    id = created.json()["id"]
    await eventually(lambda: service.task(id)["status"] == "completed")
    talk(service.port, request("PATCH", f"/task/{id}/cancel", "X-Request-ID: two"))
    refused = talk(service.port, post(b"{"))
    unread = talk(service.port, b"not http\r\n\r\n")
    with Wire(service.port) as wire:
        for number in range(20):
            wire.send(post(b'{"content": "x"}', f"X-Request-ID: n{number}"))
        answers = [wire.answer() for _ in range(20)]
    assert {answer.status for answer in answers if answer is not None} == {201}
    assert service.stop() == 0

    events = service.events()  # each line has to be JSON
    for event in events:
        assert event["event"]
        assert event["level"] in ("debug", "info")
        assert event["logger"].startswith("tasksvc")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["timestamp"])
        is_of_a_request = event["action"] in ("created", "canceled", "answered", "refused")
        assert ("request_id" in event) == is_of_a_request, event
    assert next(event for event in events if event["action"] == "created")["task_id"] == id

    def actions(request_id: str) -> list[str]:
        return [event["action"] for event in events if event.get("request_id") == request_id]

    assert actions("one") == ["created", "answered"]
    assert actions("two") == ["answered"]
    assert actions(refused.headers["x-request-id"]) == ["answered"]
    assert actions(unread.headers["x-request-id"]) == ["refused"]
    for number in range(20):
        assert actions(f"n{number}") == ["created", "answered"]

    said = service.output().splitlines()
    assert [line for line in said if not TERMINAL_LINE.fullmatch(line)] == []
    assert len(said) == len(events)
    assert "\x1b" not in service.output()  # colours are for terminals


@pytest.mark.parametrize("where", ["loop", "thread", "process"])
async def test_lines_of_a_handler_name_its_task(shared_services: Start, where: str) -> None:
    service = shared_services(TASKSVC_HANDLERS="tests.handlers.shop", TASK_RETRY_BASE_SECONDS=0)

    id = service.create(kind=f"talk-{where}")["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")

    def said() -> list[dict[str, Any]]:
        loggers = ("tasksvc.handler", "shop", "library")
        return [
            event
            for event in service.events()
            if event.get("task_id") == id and event["logger"] in loggers
        ]

    await eventually(lambda: len(said()) == 4)
    context, own, library, error = said()
    for event in said():
        assert event["attempt"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["timestamp"])
    assert (context["event"], context["level"], context["number"]) == ("By the context", "info", 1)
    assert (own["event"], own["logger"], own["number"]) == ("By structlog", "shop", 2)
    assert (library["event"], library["level"]) == ("By logging", "warning")
    assert error["value"].startswith("<object")
    assert error["exception"][0]["exc_type"] == "Unheard"
    assert error["exception"][0]["frames"][0]["name"] == "talk"

    lines = [line for line in service.output().splitlines() if f"task_id={id}" in line]
    for text in ("By the context", "By structlog", "By logging", "With an error"):
        (line,) = [line for line in lines if text in line]
        assert TERMINAL_LINE.fullmatch(line)
    assert "tests.handlers.shop.Unheard: why" in service.output()


async def test_level_is_kept_in_a_process(start_service: Start) -> None:
    service = start_service(TASKSVC_HANDLERS="tests.handlers.shop", LOG_LEVEL="debug")

    id = service.create("quietly", kind="talk-process")["id"]

    await eventually(lambda: service.task(id)["status"] == "completed")
    told = [e["event"] for e in service.events() if e["logger"] in ("tasksvc.handler", "library")]
    assert told == ["Ours"]


async def test_content_and_secrets_are_nowhere(
    start_service: Start, environment: dict[str, str]
) -> None:
    """Not even while everything goes wrong."""
    password = f"pass-{CANARY}"
    # A password that the server does not need is still a password.
    url = urlsplit(environment["DATABASE_URL"])
    with_password = url._replace(netloc=url.netloc.replace("@", f":{password}@")).geturl()
    assert password in with_password
    service = start_service(
        DATABASE_URL=with_password,
        REDIS_URL=f"redis://user:{password}@127.0.0.1:1/0",
        LOG_LEVEL="debug",
    )

    ids = [service.create(f"content-{CANARY}")["id"]]
    talk(service.port, post(f'{{"content": 1, "{CANARY}": "{CANARY}"}}'.encode()))
    talk(service.port, post(f'{{"content": "{CANARY}\\u0000"}}'.encode()))
    talk(service.port, request("GET", f"/{CANARY}?{CANARY}", f"Authorization: Bearer {CANARY}"))
    talk(service.port, request("GET", f"/task/{CANARY}", f"Cookie: {CANARY}"))
    talk(service.port, f"{CANARY}\r\n\r\n".encode())
    await eventually(lambda: service.statuses(ids) == {"completed"})
    _, _, metrics = service.get("/metrics")
    _, _, health = service.get("/health")
    assert service.stop() == 0

    for said in (service.log_path.read_text(), service.output(), str(metrics), str(health)):
        assert CANARY not in said


@pytest.mark.slow
async def test_secrets_are_nowhere_while_postgres_refuses(
    environment: dict[str, str], tmp_path: Path
) -> None:
    service = ServiceProcess(
        tmp_path,
        environment | {"DATABASE_URL": f"postgresql://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}"},
    )
    service.spawn()
    try:
        service.wait_for_line("Waiting for PostgreSQL")
        assert service.stop() == 0
    finally:
        service.end()

    for said in (service.log_path.read_text(), service.output()):
        assert CANARY not in said
        assert "Traceback" not in said


@pytest.mark.slow
async def test_log_level_is_kept(environment: dict[str, str], tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, environment | {"LOG_LEVEL": "WARNING"})
    service.spawn()
    try:

        def is_up() -> bool:
            try:
                return service.get("/health")[0] == 200
            except OSError:
                return False

        await eventually(is_up)
        service.create()
        assert service.stop() == 0
    finally:
        service.end()

    assert service.events() == []
    assert service.output() == ""


# The configuration by itself.


@contextmanager
def configured(folder: Path, level: str = "debug") -> Iterator[Path]:
    """Logging to a file there; afterwards the process's logging is as it was."""
    root, ours = logging.getLogger(), logging.getLogger("tasksvc")
    before = (list(root.handlers), root.level, ours.level, structlog.get_config())
    path = folder / "new" / "app.log"
    try:
        with logs.configured(level, path):
            yield path
    finally:
        root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
        structlog.configure(**before[3])


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def test_every_line_is_written_by_the_end(tmp_path: Path) -> None:
    with configured(tmp_path) as path:
        for number in range(1000):
            structlog.get_logger("tasksvc.x").info("Event", number=number)

    assert [event["number"] for event in events(path)] == list(range(1000))


def test_line_that_cannot_be_made_or_sent_fails_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process whose lines another one writes."""
    sent: list[logs.Line] = []

    def send(line: logs.Line) -> None:
        if "nobody" in line.file:
            raise BrokenPipeError
        sent.append(line)

    with configured(tmp_path):
        logs.relay(logging.INFO, send, task_id="t")
        logging.getLogger("library").warning("%d", "no number")
        logging.getLogger("library").warning("to nobody")
        logging.getLogger("library").warning("to somebody")

    assert [json.loads(line.file)["event"] for line in sent] == ["%d", "to somebody"]
    assert json.loads(sent[0].file)["args"] == ["no number"]
    assert "to nobody" not in capsys.readouterr().err


def test_newlines_and_escapes_stay_within_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\nb\r\x1b[31m\x00\x9b\u2028"
    with configured(tmp_path) as path:
        structlog.get_logger("tasksvc.x").info(evil, request_id=evil, nested={"x": [evil]})
        logging.getLogger("library").warning("said %s", evil)

    first, second = events(path)
    assert first["event"] == first["request_id"] == first["nested"]["x"][0] == evil
    assert second["event"] == f"said {evil}"
    assert b"\x1b" not in path.read_bytes()
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert not set("\r\x1b\x00\x9b") & set(said)


def test_exception_is_told_without_what_the_variables_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(content: str) -> None:
        raise ValueError("wrong\x1b[31m")

    with configured(tmp_path) as path:
        log = structlog.get_logger("tasksvc.x")
        try:
            fail(CANARY)
        except ValueError as error:
            log.exception("By method")
            log.error("By flag", exc_info=True)
            log.error("By value", exc_info=error)
            logging.getLogger("library").exception("By a library")

    found = events(path)
    assert [event["event"] for event in found] == [
        "By method",
        "By flag",
        "By value",
        "By a library",
    ]
    for event in found:
        assert event["exception"][0]["exc_type"] == "ValueError"
        assert event["exception"][0]["exc_value"] == "wrong\x1b[31m"
    said = capsys.readouterr().err
    assert said.count("Traceback (most recent call last)") == 4
    assert said.count("ValueError: wrong\\x1b[31m") == 4
    assert "\x1b" not in said
    assert CANARY not in path.read_text()
    assert CANARY not in said


def test_what_json_cannot_say_is_said_in_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured(tmp_path) as path:
        structlog.get_logger("tasksvc.x").info(
            "Event", half="\ud800", large=2**70, keys={(1, 2): 3}, any=object, path=path
        )

    (event,) = events(path)
    assert event["half"] == "\ufffd"
    assert event["large"] == 2**70
    assert event["keys"] == {"(1, 2)": 3}
    assert "Logging error" not in capsys.readouterr().err


def test_libraries_have_the_context_and_the_time_of_the_moment(tmp_path: Path) -> None:
    with configured(tmp_path) as path:
        with structlog.contextvars.bound_contextvars(task_id="t", request_id="r"):
            logging.getLogger("library").warning("Within")
            structlog.get_logger("tasksvc.x").warning("Within")
        logging.getLogger("library").warning("Without")
        logging.getLogger("library").debug("Not ours to tell")

    library, ours, without = events(path)
    assert (library["task_id"], library["request_id"]) == ("t", "r")
    assert (ours["task_id"], ours["request_id"]) == ("t", "r")
    assert "task_id" not in without
    assert library["timestamp"] <= ours["timestamp"] <= without["timestamp"]
    assert library["logger"] == "library"


def test_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 2000)
    with configured(tmp_path) as path:
        for number in range(200):
            structlog.get_logger("tasksvc.x").info("Event", number=number)

    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == ["app.log", *(f"app.log.{n}" for n in range(1, 6))]
    assert max(each.stat().st_size for each in files) <= 2000
    numbers = [event["number"] for each in files[:0:-1] + files[:1] for event in events(each)]
    assert numbers == list(range(numbers[0], 200))


@pytest.mark.parametrize("bound", ["QUEUE_LINES", "QUEUE_BYTES"])
def test_lines_that_do_not_fit_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(sink, bound, 1 if bound == "QUEUE_LINES" else 1000)
    before = logs.dropped_lines()
    with configured(tmp_path) as path:
        for number in range(500):
            structlog.get_logger("tasksvc.x").info("Event", number=number)

    dropped = logs.dropped_lines()["file", "full"] - before.get(("file", "full"), 0)
    assert dropped > 0
    found = events(path)
    missing = [event["count"] for event in found if event["event"] == "Log lines are missing"]
    assert sum(missing) == dropped
    assert len(found) - len(missing) == 500 - dropped


def test_old_file_is_continued(tmp_path: Path) -> None:
    for run in range(2):
        with configured(tmp_path) as path:
            structlog.get_logger("tasksvc.x").info("Event", run=run)

    assert [event["run"] for event in events(path)] == [0, 1]


def test_level_is_kept_for_ours_and_theirs(tmp_path: Path) -> None:
    with configured(tmp_path, "warning") as path:
        for logger in (structlog.get_logger("tasksvc.x"), logging.getLogger("library")):
            logger.info("no")
            logger.warning("yes")

    assert [event["event"] for event in events(path)] == ["yes", "yes"]
