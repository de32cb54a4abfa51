"""One logging configuration: JSON lines in a file, readable ones on the terminal.

The event loop never waits for a disk: lines go through a bounded queue to a thread that renders and
writes them. What does not fit is dropped and counted.
"""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import orjson
import structlog

MAX_BYTES = 20 * 1024 * 1024
BACKUPS = 5
QUEUE_LINES = 10_000

_CONTROL = {
    code: repr(chr(code))[1:-1]
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000))
}
"""What would start a line of its own, speak to the terminal, or is no character."""

_CONTROL_BUT_NEWLINE = {code: text for code, text in _CONTROL.items() if code not in (9, 10)}

Event = dict[str, Any]


_about: ContextVar[Event] = ContextVar("about")


def about(**what: Any) -> None:
    """What all lines of this asyncio task are about from here on. One variable for all of it:
    structlog has one for each word, and every request and every run would pay for that."""
    _about.set(what)


def context() -> Event:
    """What a line that is made here is about."""
    return {**structlog.contextvars.get_contextvars(), **_about.get({})}


def _merge_context(logger: Any, name: str, event: Event) -> Event:
    return {**context(), **event}


def _hold_exception(logger: Any, name: str, event: Event) -> Event:
    """The exception itself in place of `True`: the thread that renders it has none in hand."""
    if event.get("exc_info") is True:
        event["exc_info"] = sys.exc_info()
    return event


def _from_record(logger: Any, name: str, event: Event) -> Event:
    """What the record of a library says of itself."""
    record = event["_record"]
    moment = datetime.fromtimestamp(record.created, UTC)
    event["timestamp"] = moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    return {**event, **getattr(record, "context", {})}


def _on_one_line(logger: Any, name: str, event: Event) -> Event:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = value.translate(_CONTROL)
    return event


def _write_traceback(out: TextIO, exc_info: Any) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(text.getvalue().translate(_CONTROL_BUT_NEWLINE))


_OURS: list[Any] = [
    _merge_context,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _hold_exception,
]

_THEIRS: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    _from_record,
]


class _Queue(logging.handlers.QueueHandler):
    """Hands a record over as it is, with the context that it was made in: the thread renders it."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if not isinstance(record.msg, dict):  # structlog's own have it in them
            record.context = context()
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            _Queue.dropped += 1


class Line(NamedTuple):
    """A line that was made in another process."""

    logger: str
    level: int
    terminal: str
    file: str


class _Relay(logging.Handler):
    """Sends each line, in both of its forms, to the process that writes it."""

    def __init__(self, send: Callable[[Line], None], context: Event) -> None:
        super().__init__()
        self._send = send
        self._context = context
        self._forms = _for_terminal(), _for_file()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):
            record.msg = {**self._context, **record.msg}
        else:
            record.context = {**self._context, **context()}
        try:
            terminal, file = (form.format(record) for form in self._forms)
        except Exception:
            self.handleError(record)
            return
        with suppress(OSError):  # nobody is there to write it
            self._send(Line(record.name, record.levelno, terminal, file))


class _Listener(logging.handlers.QueueListener):
    def enqueue_sentinel(self) -> None:
        self.queue.put(self._sentinel)  # type: ignore[attr-defined]  # it waits for room


def dropped_lines() -> int:
    """How many lines did not fit since the process started."""
    return _Queue.dropped


@contextmanager
def configured(level: str, file_path: Path) -> Iterator[None]:
    """Logging for as long as the program runs; at the end every line is written.

    Raises OSError when the file can't be opened.
    """
    file_path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        file_path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8"
    )
    file.setFormatter(_for_file())
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_for_terminal())
    handler = _Queue(queue.Queue(QUEUE_LINES))
    listener = _Listener(handler.queue, terminal, file)
    _set_up(handler, logging.getLevelName(level.upper()))
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        logging.getLogger().handlers[:] = []
        file.close()


def level() -> int:
    """What the service's own lines are at least."""
    return logging.getLogger("tasksvc").getEffectiveLevel()


def relay(level: int, send: Callable[[Line], None], **context: Any) -> None:
    """Logging of a process whose lines another one writes; all of them have the context."""
    _set_up(_Relay(send, context), level)


def write(line: Line) -> None:
    """Writes a line of another process."""
    record = logging.LogRecord(line.logger, line.level, "", 0, line.terminal, None, None)
    record.line = line
    logging.getLogger(line.logger).handle(record)


def _set_up(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))  # libraries' own debugging is not ours
    logging.getLogger("tasksvc").setLevel(level)
    # The access log is ours; and asyncio says what we handle.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_OURS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def _json(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:  # a lone surrogate, a number that is too large, a key that is no text
        plain = (str, int, float, type(None))
        return json.dumps(
            {
                key: value if isinstance(value, plain) else repr(value)
                for key, value in event.items()
            }
        )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """One form of a line. What another process has sent has it already."""

    def __init__(self, form: str, *renderers: Any) -> None:
        super().__init__(
            foreign_pre_chain=_THEIRS,
            processors=[self.remove_processors_meta, *renderers],
        )
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, "line", None)
        return super().format(record) if line is None else getattr(line, self._form)


def _for_terminal() -> logging.Formatter:
    return _Formatter(
        "terminal",
        _on_one_line,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_write_traceback
        ),
    )


def _for_file() -> logging.Formatter:
    return _Formatter(
        "file",
        # Without the frames' variables: they hold what tasks contain.
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
        structlog.processors.JSONRenderer(serializer=_json),
    )
