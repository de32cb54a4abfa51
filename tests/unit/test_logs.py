"""What the log makes of any value, and what it does when it can't write: it stops nothing."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import stat
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasksvc import logs
from tasksvc.logs import file
from tasksvc.logs.lines import LINE_BYTES
from tests.harness import ROOT, eventually

OURS = "tasksvc.x"


@contextmanager
def configured(path: Path, level: str = "debug") -> Iterator[Path]:
    """Logging to a file there; afterwards the process's logging is as it was."""
    root, ours = logging.getLogger(), logging.getLogger("tasksvc")
    before = (list(root.handlers), root.level, ours.level, structlog.get_config())
    factory = logging.getLogRecordFactory()
    try:
        with logs.configured(level, path):
            yield path
    finally:
        root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
        structlog.configure(**before[3])
        logging.setLogRecordFactory(factory)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def events(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1]
    assert [len(line) for line in lines if len(line) > LINE_BYTES] == []
    return [json.loads(line) for line in lines]


def log() -> Any:
    return structlog.get_logger(OURS)


# Values.


def raising(error: BaseException) -> type:
    class Odd:
        def __repr__(self) -> str:
            raise error

    return Odd


class Endless:
    def __repr__(self) -> str:
        return repr(self)


class Talking:
    """Logs itself while it is shown."""

    def __repr__(self) -> str:
        log().info("Talks", value=self)
        logging.getLogger("library").warning("%s", self)
        return "talking"


class Pretending:
    @property
    def __class__(self) -> Any:
        raise ValueError


class Number:
    def __str__(self) -> Any:
        return 5


class EvilText(str):
    def __len__(self) -> int:
        raise ValueError

    def __str__(self) -> str:
        raise SystemExit


class EvilDict(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        raise ValueError


@dataclass(slots=True)
class Unset:
    """The encoder of JSON crashes the process on this one."""

    pages: int
    path: str = field(init=False)


class Bad(Enum):
    A = 1

    @property
    def value(self) -> Any:
        raise ValueError


class Meta(type):
    @property
    def __name__(cls) -> Any:
        raise ValueError

    def __repr__(cls) -> str:
        raise ValueError


class WithMeta(metaclass=Meta):
    pass


class Untold(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append({"itself": value})
    return value


def chain(length: int) -> BaseException:
    error = ValueError("first")
    for number in range(length):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    return error


def group(depth: int) -> BaseException:
    error: Exception = ValueError("x")
    for _ in range(depth):
        error = ExceptionGroup("more", [error] * 20)
    return error


ODD: dict[str, Callable[[], Any]] = {
    "raises": raising(ValueError()),
    "recursion": raising(RecursionError()),
    "exits": raising(SystemExit(1)),
    "interrupts": raising(KeyboardInterrupt()),
    "endless": Endless,
    "talking": Talking,
    "pretending": Pretending,
    "number for a text": Number,
    "evil text": lambda: EvilText("x"),
    "evil dictionary": lambda: EvilDict(a=1),
    "unset attribute": lambda: Unset(1),
    "enum": lambda: Bad.A,
    "meta": WithMeta,
    "class with meta": lambda: WithMeta,
    "untold error": Untold,
    "deep": lambda: nested(100_000),
    "circle": circle,
    "wide": lambda: list(range(100_000)),
    "many keys": lambda: {str(number): number for number in range(100_000)},
    "odd keys": lambda: {raising(ValueError())(): 1, (1, 2): 2, None: 3},
    "long": lambda: "x" * 1_000_000,
    "long of controls": lambda: "\0" * 1_000_000,
    "long of others": lambda: "\U000e0001" * 1_000_000,
    "bytes": lambda: b"\xff" * 1_000_000,
    "large": lambda: 10**100_000,
    "larger than JSON": lambda: [2**63, -(2**80)],
    "half": lambda: {"\ud800": ["\udfff"]},
    "no number": lambda: [float("nan"), float("inf")],
    "set": lambda: {1},
    "ordered": lambda: OrderedDict(a=1),
    "chain": lambda: chain(10_000),
    "group": lambda: group(3),
}


def talk_of(value: Any) -> None:
    """In every way to log a value."""
    log().info("Value", value=value)
    log().info("Positional %s", value)
    log().bind(value=value).info("Bound")
    log().info(value)
    log().error("As an error", exc_info=value)
    library = logging.getLogger("library")
    library.warning("%s", value)
    library.warning("%r and %d", value, value)
    library.warning(value)
    library.warning("With more", extra={"value": value, "line": value})
    if issubclass(type(value), BaseException):
        try:
            raise value
        except BaseException:
            log().exception("Raised")
            library.exception("Raised")


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_any_value_is_shown_or_replaced(path: Path, make: Callable[[], Any]) -> None:
    with configured(path):
        talk_of(make())
        log().info("Canary")

    found = events(path)
    said = [event["event"] for event in found]
    assert said.count("Canary") == 1
    assert said.count("Value") == 1


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.binary(),
        st.decimals(),
        st.datetimes(),
        st.uuids(),
        # Neither the largest, nor those whose class hypothesis itself would ask for.
        st.sampled_from(
            [make for name, make in ODD.items() if name[:4] not in ("long", "meta", "clas", "pret")]
        ).map(lambda make: make()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters()), fields=st.dictionaries(st.text(), values, max_size=3))
def test_lines_of_loop_thread_and_process_stop_nothing(
    tmp_path_factory: pytest.TempPathFactory, text: str, fields: dict[str, Any]
) -> None:
    """Whatever is logged, the next line arrives."""
    sent: list[logs.Line] = []

    def say() -> None:
        log().info(text, **fields)
        logging.getLogger("library").warning(text, fields, exc_info=Untold())

    path = tmp_path_factory.mktemp("log") / "app.log"
    with configured(path):
        say()
        thread = threading.Thread(target=say)
        thread.start()
        thread.join()
        log().info("Canary")
    with configured(path):
        logs.relay(logging.INFO, sent.append, task_id="t")
        say()
    with configured(path):
        for line in sent:
            logs.write(line)
        log().info("Canary")

    assert len(sent) >= 2
    assert [event["event"] for event in events(path)].count("Canary") == 2


def test_values_are_those_of_the_moment(path: Path) -> None:
    with configured(path):
        basket = {"items": ["book"], "total": 10}
        log().info("charging", basket=basket)
        logging.getLogger("shop").info("charging %s", basket)
        basket["items"] = []
        basket["total"] = 0

    first, second = events(path)
    assert first["basket"] == {"items": ["book"], "total": 10}
    assert second["event"] == "charging {'items': ['book'], 'total': 10}"


def test_fields_of_any_name_are_kept(path: Path) -> None:
    names = ("event", "self", "level", "logger", "timestamp", "line", "method_name", "args", "a b")
    with configured(path):
        log().info("By structlog", **{name: name for name in names})
        logging.getLogger("shop").info("By logging", extra={"user": "u1", "line": 17, "level": 3})

    first, second = events(path)
    assert first["event"] == "By structlog"
    assert {first.get(name, name) for name in names} | {first[f"{name}_"] for name in names[:1]}
    for name in names:
        assert name in (first[name], first.get(f"{name}_"))
    assert (second["user"], second["line"], second["level_"]) == ("u1", 17, 3)
    assert second["level"] == "info"


def test_arguments_that_do_not_fit_stay_beside_their_text(path: Path) -> None:
    with configured(path):
        log().info("%d", "x")
        log().info("%s", Untold())
        log().info("no place", 1)
        logging.getLogger("shop").info("%d", "x")

    found = events(path)
    assert [event["event"] for event in found] == ["%d", "%s", "no place", "%d"]
    assert found[0]["args"] == found[3]["args"] == ["x"]


async def test_async_methods_and_levels(path: Path) -> None:
    with configured(path, "info"):
        await log().ainfo("a")
        await log().adebug("b")
        await log().alog(logging.WARNING, "c")
        log().log(logging.DEBUG, "d")
        assert log().is_enabled_for(logging.INFO)
        assert not log().is_enabled_for(logging.DEBUG)

    assert [event["event"] for event in events(path)] == ["a", "c"]


# The terminal.

EVIL = "\x1b[31m\n12:00:00.000 error    Forged\r\0\x85\x9b\u2028\u2029\u202e\u2066\u200f"


def test_no_line_of_the_terminal_or_the_file_is_another(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil(Exception):
        pass

    Evil.__module__ = Evil.__qualname__ = Evil.__name__ = EVIL.replace("\0", "")
    error = Evil(EVIL)
    error.add_note(EVIL)
    with configured(path):
        log().info(EVIL, **{EVIL: {EVIL: EVIL}})
        logging.getLogger(EVIL).warning(EVIL, extra={EVIL: [EVIL]})
        try:
            raise error
        except Evil:
            log().exception(EVIL)
            logging.getLogger("library").warning(EVIL, exc_info=True, stack_info=True)

    said = capsys.readouterr().err
    for bad in "\x1b\r\0\x85\x9b\u2028\u2029\u202e\u2066\u200f":
        assert bad not in said
        assert bad not in path.read_text()
    assert len(events(path)) == 4
    begun = [line for line in said.split("\n")[:-1] if not line.startswith("    ")]
    assert len(begun) == 4
    assert not [line for line in begun if line.startswith("12:00:00.000 error")]


def test_terminal_is_short(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request_id = "01234567"
    with configured(path), structlog.contextvars.bound_contextvars(request_id=request_id):
        log().info("Created", action="created", task_id="t", count=3, text="two words")
        log().warning("Failed")
        logging.getLogger("shop").info("Sold")

    first, second, third = (line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines())
    assert first == "info     Created request_id=01234567 task_id=t count=3 text='two words'"
    assert second == "warning  Failed request_id=01234567"
    assert third == "info     Sold request_id=01234567 [shop]"


# Places that can't be written to.


@contextmanager
def standard_error(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> Iterator[None]:
    with open(descriptor, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield
        monkeypatch.undo()


def test_terminal_that_nobody_reads_holds_up_neither_the_file_nor_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    with standard_error(monkeypatch, writing):
        with configured(path):
            for number in range(3000):
                log().info("Event", number=number, text="x" * 500)
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 5
    os.close(reading)  # the thread that waits ends

    assert [event["number"] for event in events(path)] == list(range(3000))
    os.close(writing)


def test_flush_waits_for_the_terminal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with configured(path):
        for number in range(100):
            log().info("Event", number=number)
        logs.flush()
        assert capsys.readouterr().err.count("Event") == 100


async def test_terminal_that_is_gone_is_told_once_in_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    before = logs.dropped_lines()["terminal", "failed"]
    with standard_error(monkeypatch, writing), configured(path):
        for number in range(100):
            log().info("Event", number=number)
        await eventually(lambda: logs.dropped_lines()["terminal", "failed"] >= before + 100)
    os.close(writing)

    found = events(path)
    assert [event["number"] for event in found if "number" in event] == list(range(100))
    (trouble,) = [event for event in found if event.get("action") == "log_trouble"]
    assert (trouble["place"], trouble["reason"]) == ("terminal", "Broken pipe")


def test_full_disk_is_told_once_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logs.dropped_lines()["file", "failed"]
    with configured(Path("/dev/full")):
        for number in range(300):
            log().info("Event", number=number)

    said = capsys.readouterr().err
    assert said.count("Log lines can't be written") == 1
    assert "place=file reason='No space left on device'" in said
    assert said.count("Event") == 300
    assert logs.dropped_lines()["file", "failed"] == before + 300


async def test_file_that_was_away_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "app.log"
    before = logs.dropped_lines()["file", "failed"]
    with configured(path):
        log().info("First")
        await eventually(path.read_text)
        path.unlink()
        path.parent.rmdir()
        path.parent.touch()
        log().info("Lost")
        await eventually(lambda: logs.dropped_lines()["file", "failed"] > before)
        path.parent.unlink()
        log().info("Second")

    second, missing = events(path)
    assert (second["event"], missing["count"]) == ("Second", 1)


def test_line_after_a_torn_one_is_whole(path: Path) -> None:
    path.write_text('{"event": "torn')
    with configured(path):
        log().info("Whole")

    assert json.loads(path.read_text().splitlines()[1])["event"] == "Whole"


def test_file_is_its_owners_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 500)
    path.touch(0o644)
    with configured(path):
        for _ in range(20):
            log().info("Event")

    modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {0o600}


def test_folder_that_takes_no_other_name_keeps_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 500)
    for number in range(1, 6):
        (path.parent / f"app.log.{number}" / "x").mkdir(parents=True)
    with configured(path):
        for number in range(20):
            log().info("Event", number=number)

    assert [event["number"] for event in events(path)] == list(range(20))
    assert capsys.readouterr().err.count("Log lines can't be written") == 1


WRITER = """
import sys
from pathlib import Path
import structlog
from tasksvc import logs
from tasksvc.logs import file
file.MAX_BYTES, file.BACKUPS = 20_000, 100
with logs.configured("info", Path(sys.argv[1])):
    for number in range(400):
        structlog.get_logger("tasksvc.x").info("Event", writer=sys.argv[2], number=number)
        if number % 20 == 0:
            import time; time.sleep(0.01)
"""


@pytest.mark.slow
def test_processes_share_a_file_and_rotate_it(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(number)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        for number in range(4)
    ]
    assert [writer.wait(30) for writer in writers] == [0] * 4

    found = [event for each in path.parent.iterdir() for event in events(each)]
    assert sorted((event["writer"], event["number"]) for event in found) == sorted(
        (str(writer), number) for writer in range(4) for number in range(400)
    )
    assert len(list(path.parent.iterdir())) > 3


FORKING = """
import os, sys
from pathlib import Path
import structlog
from tasksvc import logs
with logs.configured("info", Path(sys.argv[1])):
    log = structlog.get_logger("tasksvc.x")
    log.info("Before")
    child = os.fork()
    if child == 0:
        log.info("In the child")
        os._exit(0)
    os.waitpid(child, 0)
    log.info("After")
"""


@pytest.mark.slow
def test_forked_child_writes_its_lines(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert sorted(event["event"] for event in events(path)) == ["After", "Before", "In the child"]
    assert done.stderr.count("\n") == 3


# Another configuration.


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Those that another configuration disables are as before afterwards."""
    known = logging.getLogger().manager.loggerDict
    before = {name: getattr(logger, "disabled", False) for name, logger in known.items()}
    yield
    for name, logger in known.items():
        if isinstance(logger, logging.Logger):
            logger.disabled = before.get(name, False)


def dict_config() -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"c": {"class": "logging.StreamHandler"}},
            "root": {"level": "INFO", "handlers": ["c"]},
        }
    )


@pytest.mark.usefixtures("_loggers")
@pytest.mark.parametrize(
    "configure",
    [
        dict_config,
        lambda: logging.basicConfig(level=logging.INFO, force=True),
        lambda: structlog.configure(processors=[structlog.processors.JSONRenderer()]),
        lambda: logging.getLogger().handlers.clear(),
    ],
    ids=["dictConfig", "basicConfig", "structlog", "by hand"],
)
@pytest.mark.parametrize("by_itself", [False, True])
async def test_another_configuration_of_logging_takes_nothing_away(
    path: Path, capsys: pytest.CaptureFixture[str], configure: Callable[[], None], by_itself: bool
) -> None:
    library = logging.getLogger("shop-of-logs")
    with configured(path):
        before = log()
        before.info("Before")
        configure()
        if by_itself:
            await eventually(lambda: "logging_kept" in path.read_text())
        else:
            logs.keep()
        before.info("Ours")
        log().debug("Of its own level")
        library.disabled = False
        library.warning("Theirs")

    said = [event["event"] for event in events(path)]
    assert [each for each in said if not each.startswith("Another")] == [
        "Before",
        "Ours",
        "Of its own level",
        "Theirs",
    ]
    assert capsys.readouterr().err.count("Theirs") == 1


def test_other_handlers_stay(path: Path) -> None:
    kept: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    with configured(path):
        logging.getLogger().handlers[:] = [Kept()]
        logs.keep()
        logging.getLogger("shop").warning("Sold")

    assert "Sold" in kept
    assert "Sold" in [event["event"] for event in events(path)]
