"""One logging configuration: JSON lines in a file, readable ones on the terminal.

The event loop never waits for a disk: lines go through a bounded queue to a thread that renders and
writes them. What does not fit is dropped and counted.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog

MAX_BYTES = 20 * 1024 * 1024
BACKUPS = 5
QUEUE_LINES = 10_000

_BEFORE: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class _Queue(logging.handlers.QueueHandler):
    """Hands a record over as it is: the thread renders it."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            _Queue.dropped += 1


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
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    )
    handler = _Queue(queue.Queue(QUEUE_LINES))
    listener = logging.handlers.QueueListener(handler.queue, terminal, file)
    root = logging.getLogger()
    number = logging.getLevelName(level.upper())
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))  # libraries' own debugging is not ours
    logging.getLogger("tasksvc").setLevel(number)
    # The access log is ours; and asyncio says what we handle.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_BEFORE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
    return orjson.dumps(event, default=str).decode()


def _formatter(*renderers: Any) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_BEFORE,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
