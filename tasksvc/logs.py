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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

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
    structlog.contextvars.merge_contextvars,
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
            record.context = structlog.contextvars.get_contextvars()
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            _Queue.dropped += 1


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
    file.setFormatter(
        _formatter(
            # Without the frames' variables: they hold what tasks contain.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(serializer=_json),
        )
    )
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(
        _formatter(
            _on_one_line,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_write_traceback
            ),
        )
    )
    handler = _Queue(queue.Queue(QUEUE_LINES))
    listener = _Listener(handler.queue, terminal, file)
    root = logging.getLogger()
    number = logging.getLevelName(level.upper())
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))  # libraries' own debugging is not ours
    logging.getLogger("tasksvc").setLevel(number)
    # The access log is ours; and asyncio says what we handle.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_OURS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=False,
    )
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        root.handlers[:] = []
        file.close()


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


def _formatter(*renderers: Any) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_THEIRS,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
