"""Why PostgreSQL is away, in its own words. No address, statement or secret is in them."""

from __future__ import annotations

import re
import socket

import psycopg2

_ADDRESS = re.compile(
    r'^connection to server (?:at|on socket) ".*?"(?: \(.*?\))?(?:, port \d+)? failed: '
)

_NAME = re.compile(r'^could not translate host name ".*?" to address: ')

_LASTING = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|does not exist"
    "|no such database|no such user|permission denied|is not permitted to log in"
    "|unsupported startup parameter|unrecognized configuration parameter"
    "|not allowed in statement pooling|SSL was required|does not support SSL|certificate"
    '|definition of service ".*" not found'
)
"""Parts of what PostgreSQL, PgBouncer and libpq say to a connection until an operator changes the
settings. They are English: a server that speaks another language is asked again and again."""


class Unfit(Exception):
    """The database can't be used as it is. Its text is the reason."""


class NoConnection(TimeoutError):
    """PostgreSQL did not take a connection in time."""


def reason_of(error: BaseException) -> str | None:
    """One line; None when the error does not say why."""
    sentence: str | None = getattr(getattr(error, "diag", None), "message_primary", None)
    if sentence is not None:
        return sentence
    match error:
        case Unfit():
            return str(error)
        case NoConnection():
            return "no connection in time"
        case TimeoutError():
            return "no answer in time"
        case psycopg2.OperationalError():
            return _of_libpq(str(error))
        case socket.gaierror():
            return f"the name of its host can't be resolved: {error.strerror}"
        case OSError():
            return error.strerror
    return None


def is_lasting(error: BaseException) -> bool:
    """Whether a connection will be refused until an operator changes something."""
    is_refusal = isinstance(error, psycopg2.OperationalError) and error.pgcode is None
    return is_refusal and _LASTING.search(reason_of(error) or "") is not None


def _of_libpq(text: str) -> str | None:
    # What a server says to a connection that it refuses, psycopg2 has as text alone, behind the
    # address: 'connection to server at "…" failed: FATAL:  …'.
    _, is_refusal, refusal = text.partition("FATAL:")
    lines = (refusal if is_refusal else text).strip().splitlines()
    if not lines:
        return None
    line, is_name = _NAME.subn("", _ADDRESS.sub("", lines[0]))
    return f"the name of its host can't be resolved: {line}" if is_name else line
