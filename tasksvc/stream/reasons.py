"""Why Redis is away, in its own words. No address and no secret is in them."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator

from redis import exceptions
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    ResponseError,
)

_LONGEST = 200

_ADDRESS = re.compile(r" \d{1,3}(\.\d{1,3}){3}:\d+| \S+:\d+$")
"""In what a cluster says: MOVED 3999 10.0.0.1:6381."""

_ARGUMENTS = re.compile(r",? with args beginning with.*", re.DOTALL)
"""Of a command that is unknown: AUTH has the password there."""

_NO_SUCH_DATABASE = "DB index"


def reason_of(error: BaseException) -> str | None:
    """Returns the reason of the error in one line; None when the error has no reason."""
    for each in _chain(error):
        match each:
            case ResponseError() | AuthenticationError():
                text = _ARGUMENTS.sub("", str(each)).strip()
                return _ADDRESS.sub("", text.splitlines()[0])[:_LONGEST] if text else None
            case InvalidResponse():
                return "what answers is no Redis"
            case TimeoutError() | exceptions.TimeoutError():
                return "no answer in time"
            case ssl.SSLError():
                words = (getattr(each, name, None) for name in ("verify_message", "reason"))
                return f"TLS: {next(filter(None, words), 'failed')}"
            case socket.gaierror():
                return f"the name of its host can't be resolved: {each.strerror}"
            case OSError() if each.errno is not None:
                # Not its own text: asyncio's has the address.
                return os.strerror(each.errno)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_lasting(error: BaseException) -> bool:
    """Returns whether Redis will keep refusing until its settings, or ours, are changed."""
    # Over a unix socket redis-py wraps the answer to a new connection in an error of its own.
    return any(
        isinstance(each, AuthenticationError | NoPermissionError)
        or (isinstance(each, ResponseError) and _NO_SUCH_DATABASE in str(each))
        for each in _chain(error)
    )
