"""Each line in its two forms: JSON for the file, text for the terminal.

Both are made where the line is logged, and bounded: the values may be others a moment later.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from tasksvc.logs import errors
from tasksvc.logs.values import Room, name_of, plain

LINE_BYTES = 65_536
"""No line of the file is longer, and none on the terminal."""

_ROOMS = (32_768, 4096)
"""Characters of a line's values. JSON writes a character in up to six bytes: the second try is
always short enough."""

_TERMINAL_LENGTH = LINE_BYTES // 4
"""Characters; UTF-8 has up to four bytes for one."""

_OURS = ("timestamp", "level", "logger", "pid", "event", "exception", "stack")
"""Fields that each line has of itself. A caller's field of that name gets a `_` at its end."""
_OURS_SET = frozenset(_OURS)

_RECORD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "asctime",
    "message",
    "taskName",
    "context",
}
"""Attributes of any record. What else it has came by `extra`."""

_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What orjson leaves as it is, and what breaks a line, speaks to a terminal, turns the direction of
the text, or is no character."""

_WORD = re.compile(r"[^\s\"'=\\]+")

_COLORS = {"debug": 2, "info": 32, "warning": 33, "error": 31, "critical": 31}
_has_colors = False


class Fields(dict[str, Any]):
    """What a line of structlog has: its event and all that goes with it."""


class Line(NamedTuple):
    """A line in both of its forms, neither with its end."""

    logger: str
    level: int
    terminal: str
    file: str


def record_of(*given: Any, **more: Any) -> logging.LogRecord:
    """A record, also where its only argument raises when it is asked whether it is a mapping."""
    try:
        return logging.LogRecord(*given, **more)
    except BaseException:
        name, level, path, line_number, message, args, *others = given
        record = logging.LogRecord(name, level, path, line_number, message, (), *others, **more)
        record.args = args
        return record


def line_of(record: logging.LogRecord, context: dict[str, Any]) -> Line:
    """The line of a record. Raises hardly anything, whatever its values do."""
    if type(record.msg) is Fields:
        fields: dict[str, Any] = {**context, **record.msg}
        event = fields.pop("event", "")
        error = _error(fields.pop("exc_info", None))
    else:
        extra = {key: value for key, value in record.__dict__.items() if key not in _RECORD}
        fields = {**context, **extra}
        error = _error(record.exc_info)
        try:
            event = record.getMessage()
        except BaseException:  # its arguments don't fit it, or one of them can't be shown
            event = record.msg
            if record.args != ():
                fields["args"] = record.args
    if not _OURS_SET.isdisjoint(fields):
        fields = {f"{key}_" if key in _OURS_SET else key: item for key, item in fields.items()}
    described = None if error is None else errors.describe(error)
    return _rendered(record, event, fields, described)


def _error(given: Any) -> BaseException | None:
    """What `exc_info` stands for."""
    kind = type(given)
    if issubclass(kind, tuple):
        given = given[1] if len(given) == 3 else None
        kind = type(given)
    if issubclass(kind, BaseException):
        error: BaseException = given
        return error
    return sys.exc_info()[1] if issubclass(kind, int) and given else None


def _rendered(
    record: logging.LogRecord,
    event: Any,
    fields: dict[str, Any],
    error: list[errors.Described] | None,
) -> Line:
    level = record.levelname.lower()
    for characters in _ROOMS:
        room = Room(characters)
        said = plain(event, room)
        if type(said) is not str:
            said = str(said)
        shown = {name_of(key, room): plain(value, room) for key, value in fields.items()}
        whole = {
            "timestamp": _timestamp(record.created),
            "level": level,
            "logger": record.name,
            "pid": record.process,
            "event": said,
            **shown,
        }
        if error is not None:
            whole["exception"] = [each.as_dict() for each in error]
        if record.stack_info:
            whole["stack"] = room.text(str(record.stack_info))
        file = _json(whole)
        if len(file) <= LINE_BYTES // 4 or len(file.encode()) < LINE_BYTES:
            break
        error = None if error is None else errors.shortened(error)
    terminal = _text(record, level, said, shown, error)
    return Line(record.name, record.levelno, terminal, file)


def _json(event: dict[str, Any]) -> str:
    try:
        text = orjson.dumps(event).decode()
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    if text.isascii() and "\x7f" not in text:
        return text
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Half of a surrogate pair becomes U+FFFD: strict readers of JSON, such as orjson and those of
    Rust, refuse a line with its escape."""
    code = ord(found[0])
    return "\\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


# The terminal.


def _text(
    record: logging.LogRecord,
    level: str,
    event: str,
    fields: dict[str, Any],
    error: list[errors.Described] | None,
) -> str:
    """A short line for people: the file has the whole date, the logger and the action too."""
    parts = [_clock(record.created), _shown_level(level), _printable(event)]
    for key, value in fields.items():
        if key == "action":  # the event says it
            continue
        parts.append(f"{_shown_key(key)}={_word(value)}")
    if not record.name.startswith("tasksvc"):
        parts.append(f"[{_printable(record.name)}]")
    text = " ".join(parts)
    if error is not None:
        # Each line stands in from the edge: none can pass for a line of its own.
        text = "\n    ".join([text, *map(_printable, errors.as_text(error))])
    if record.stack_info:
        text = "\n    ".join([text, *map(_printable, str(record.stack_info).split("\n"))])
    return text if len(text) <= _TERMINAL_LENGTH else f"{text[:_TERMINAL_LENGTH]}…"


def use_colors() -> None:
    """Colors the levels where standard error is a terminal, unless NO_COLOR asks for plain text."""
    global _has_colors
    _shown_level.cache_clear()
    _has_colors = sys.stderr is not None and sys.stderr.isatty() and "NO_COLOR" not in os.environ


def _timestamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{_date(whole)}.{int((seconds - whole) * 1e6):06}Z"


@lru_cache(maxsize=2)
def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _clock(seconds: float) -> str:
    """The time of the day where the service runs."""
    whole = int(seconds)
    return f"{_local_time(whole)}.{int((seconds - whole) * 1e3):03}"


@lru_cache(maxsize=2)
def _local_time(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


@lru_cache(maxsize=32)
def _shown_level(level: str) -> str:
    padded = _printable(f"{level:<8}")
    return f"\x1b[{_COLORS.get(level, 0)}m{padded}\x1b[0m" if _has_colors else padded


@lru_cache(maxsize=1024)
def _shown_key(key: str) -> str:
    return _word(key)


def _word(value: Any) -> str:
    if type(value) is not str:
        return repr(value)  # of plain values: it escapes whatever can't be printed
    return value if _WORD.fullmatch(value) and value.isprintable() else repr(value)


def _printable(text: str) -> str:
    """On one line, with escapes for what can't be printed: also ESC and changes of direction."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
