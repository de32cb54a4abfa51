"""One logging configuration: JSON lines in a file, readable ones on the terminal.

Logging stops nothing and waits for nothing. A line is rendered where it is logged, whatever its
values do; then it goes through bounded queues to one thread for the file and one for the terminal.
What does not fit, or can't be written, is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tasksvc.logs.file import LogFile
from tasksvc.logs.lines import Fields, Line, line_of, record_of, use_colors
from tasksvc.logs.loggers import logger_class
from tasksvc.logs.sink import PLACES, Dropped, Sink, Terminal

__all__ = [
    "Line",
    "about",
    "configured",
    "context",
    "dropped_lines",
    "flush",
    "keep",
    "level",
    "relay",
    "write",
]

_END_SECONDS = 1.5
"""How long the end waits for each of the places to write what is left."""

_NESTED = 3
"""A value may log while it is rendered, and that line's values again."""

Event = dict[str, Any]

_about: ContextVar[Event] = ContextVar("about")
_rendering = threading.local()
_dropped = Dropped()


def about(**what: Any) -> None:
    """What all lines of this asyncio task are about from here on. One variable for all of it:
    structlog has one for each word, and every request and every run would pay for that."""
    _about.set(what)


def context() -> Event:
    """What a line that is made here is about."""
    return {**structlog.contextvars.get_contextvars(), **_about.get({})}


def dropped_lines() -> Mapping[tuple[str, str], int]:
    """How many lines were lost since the process started, by place and reason."""
    return _dropped.counts()


class _Handler(logging.Handler):
    """Renders each line where it is logged, and hands it on. Raises nothing."""

    def __init__(self, put: Callable[[Line], None], context: Event | None = None) -> None:
        super().__init__()
        self.put = put
        self._context = context or {}

    def createLock(self) -> None:
        """Makes none: a value that takes long to render must not hold up other threads."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        depth = getattr(_rendering, "depth", 0)
        if depth >= _NESTED:
            _lose("nested")
            return
        _rendering.depth = depth + 1
        try:
            self.put(line_of(record, {**self._context, **context()}))
        except BaseException:
            _lose("unrenderable")
        finally:
            _rendering.depth = depth


def _lose(reason: str) -> None:
    for place in PLACES:
        _dropped.add(place, reason)


@dataclass(frozen=True, slots=True)
class _Configuration:
    """What is set up now, so that it can be put back and taken away."""

    handler: _Handler
    level: int
    structlog: dict[str, Any]


_current: _Configuration | None = None
_places: _Places | None = None


class _Places:
    """The file and the terminal."""

    def __init__(self, file_path: Path) -> None:
        """Raises OSError when the file can't be opened."""
        self._log_file = LogFile(
            file_path, lambda reason: self._terminal.put(_trouble("file", reason).terminal)
        )
        self._stderr = Terminal(lambda reason: self._file.put(_trouble("terminal", reason).file))
        self._file = Sink(
            "file", self._log_file, _dropped, notice=lambda n: _missing(n).file, tick=keep
        )
        self._terminal = Sink(
            "terminal", self._stderr, _dropped, notice=lambda n: _missing(n).terminal
        )
        for each in (self._file, self._terminal):
            each.start()

    def put(self, line: Line) -> None:
        self._terminal.put(line.terminal)
        self._file.put(line.file)

    def flush(self) -> None:
        """Waits for the terminal, unless it has no reader."""
        self._terminal.flush(_END_SECONDS)

    def close(self) -> None:
        """Writes what waits, unless that takes too long."""
        if self._file.close(_END_SECONDS):
            self._log_file.close()
        self._terminal.close(_END_SECONDS)  # after what went wrong with the file

    def fork(self) -> None:
        """In a forked child, which has no threads that write."""
        self._log_file.leave_rotating()
        self._stderr.wait_for_nothing()
        for each in (self._file, self._terminal):
            each.write_at_once()


@contextmanager
def configured(level: str, file_path: Path) -> Iterator[None]:
    """Logging for as long as the program runs; at the end what is left is written, unless that
    takes seconds.

    Raises OSError when the file can't be opened.
    """
    global _places, _current
    _places = places = _Places(file_path)
    _set_up(_Handler(places.put), logging.getLevelNamesMapping()[level.upper()])
    try:
        yield
    finally:
        logging.getLogger().handlers[:] = []
        _places = _current = None
        places.close()


def flush() -> None:
    """Waits until the terminal has all lines, so that what is written to it now comes after them.
    At most 1.5 seconds."""
    if _places is not None:
        _places.flush()


def keep() -> None:
    """Puts the logging back where another configuration took its place: that of a module of
    handlers, or of a library that it imports. Other handlers of the root stay, unless they write
    to the terminal: it has one form, and no caller waits for it."""
    if _current is not None and _put_in_place(_current):
        structlog.get_logger("tasksvc.logs").warning(
            "Another configuration of logging took the place of the service's, which is back",
            action="logging_kept",
        )


def level() -> int:
    """What the service's own lines are at least."""
    return logging.getLogger("tasksvc").getEffectiveLevel()


def relay(level: int, send: Callable[[Line], None], **context: Any) -> None:
    """Logging of a process whose lines another one writes; all of them have the context."""

    def put(line: Line) -> None:
        with suppress(OSError):  # there is no thread to write it
            send(line)

    _set_up(_Handler(put, context), level)


def write(line: Line) -> None:
    """Writes a line of another process."""
    if _places is not None:
        _places.put(line)
    else:
        logging.getLogger(line.logger).log(line.level, "%s", line.terminal)


def _set_up(handler: _Handler, level: int) -> None:
    global _current
    logging.getLogger().handlers[:] = []
    logging.getLogger().setLevel(max(level, logging.INFO))  # libraries' own debugging is not ours
    # The access log is ours; and asyncio says what we handle.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.setLogRecordFactory(record_of)
    use_colors()
    configuration = {
        "processors": [],  # its logger does all
        "logger_factory": structlog.stdlib.LoggerFactory(),
        "wrapper_class": logger_class(level, lambda: _lose("unrenderable")),
        "context_class": dict,
        "cache_logger_on_first_use": False,
    }
    _current = _Configuration(handler, level, configuration)
    _put_in_place(_current)


def _put_in_place(configuration: _Configuration) -> bool:
    """Whether anything had to be changed."""
    root = logging.getLogger()
    handlers = [each for each in root.handlers if not _is_for_terminal(each)]
    if configuration.handler not in handlers:
        handlers.append(configuration.handler)
    is_changed = handlers != root.handlers
    root.handlers[:] = handlers
    for name, logger in list(root.manager.loggerDict.items()):
        if name.partition(".")[0] == "tasksvc" and isinstance(logger, logging.Logger):
            is_changed |= logger.disabled
            logger.disabled = False
    ours = logging.getLogger("tasksvc")
    if ours.level != configuration.level:
        ours.setLevel(configuration.level)
        is_changed = True
    if structlog.get_config() != configuration.structlog:
        structlog.configure(**configuration.structlog)
        is_changed = True
    return is_changed


def _is_for_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return stream is not None and any(
        stream is each for each in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    )


def _trouble(place: str, reason: str) -> Line:
    return _line("Log lines can't be written", place=place, reason=reason, action="log_trouble")


def _missing(count: int) -> Line:
    return _line("Log lines are missing", count=count, action="log_dropped")


def _line(event: str, **fields: Any) -> Line:
    message = Fields(fields, event=event)
    return line_of(
        logging.LogRecord("tasksvc.logs", logging.WARNING, "", 0, message, None, None), {}
    )


def _after_fork() -> None:
    _dropped.forget_lock()
    if _places is not None:
        _places.fork()


os.register_at_fork(after_in_child=_after_fork)
