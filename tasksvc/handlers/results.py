"""What a handler returns, as JSON. docs/handlers.md has the table of what becomes of what."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec

from tasksvc.domain.retry import Permanent

MAX_DEPTH = 200
"""Of lists and objects within each other: readers of JSON have limits of some hundreds."""

MAX_DIGITS = 4300
"""Of a whole number. Python reads no longer ones by default.
https://docs.python.org/3/library/stdtypes.html#int-max-str-digits"""

_SAFE_RECURSION = 3_000
"""Up to here a recursion ends with RecursionError before the thread's stack does."""

_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_LONG_NUMBER = re.compile(rb"\d{%d}" % (MAX_DIGITS + 1))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {bracket: 1 if bracket in b"[{" else -1 for bracket in b"[]{}"}


class ResultRefused(Permanent):
    """What a handler returned can't be kept. Another attempt would return the like."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A result that is JSON already."""

    json: str


def encode(result: Any, max_bytes: int) -> str:
    """A result as JSON.

    Raises ResultRefused for what is not JSON, longer than `max_bytes`, nested in more than
    MAX_DEPTH lists and objects, or a number of more than MAX_DIGITS digits.
    """
    if type(result) is Encoded:
        encoded = result.json
        if len(encoded) > max_bytes or len(encoded.encode()) > max_bytes:
            raise _too_long(max_bytes)
        return encoded
    if isinstance(result, str | bytes) and len(result) > max_bytes:
        raise _too_long(max_bytes)
    data = _encoded(result)
    if len(data) > max_bytes:
        raise _too_long(max_bytes)
    if len(data) > MAX_DEPTH:  # a shorter one can't have it
        _check(data)
    return data.decode()


def _check(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise ResultRefused(f"The result is nested more than {MAX_DEPTH} deep.")
    if len(data) > MAX_DIGITS and _LONG_NUMBER.search(data):
        try:
            json.loads(data, parse_int=_short_enough)
        except ValueError:
            reason = f"The result has a number of more than {MAX_DIGITS} digits."
            raise ResultRefused(reason) from None


def _too_long(max_bytes: int) -> ResultRefused:
    return ResultRefused(f"The result has more than {max_bytes} bytes.")


def _encoded(result: Any) -> bytes:
    limit = sys.getrecursionlimit()
    try:
        # A module may have lifted the limit; then a result that holds itself would end the
        # process. Nothing else runs in between.
        if limit > _SAFE_RECURSION:
            sys.setrecursionlimit(_SAFE_RECURSION)
        return _encode(result)
    except RecursionError:
        raise ResultRefused("The result holds itself, or is nested too deep.") from None
    except UnicodeEncodeError:
        raise ResultRefused("The result has half of a surrogate pair, which is no text.") from None
    except Exception as error:
        # The text of an error may hold the value, but msgspec's names the type alone.
        reason = f": {error}" if type(error) is TypeError else f": {type(error).__name__}"
        raise ResultRefused(f"The result is not JSON{reason[:200]}.") from error
    finally:
        if limit > _SAFE_RECURSION:
            sys.setrecursionlimit(limit)


def _plain(value: Any) -> Any:
    """What msgspec does not take by itself: the subclasses of texts and numbers."""
    match value:
        case bool():
            pass
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Coroutine():
            if inspect.iscoroutine(value):
                value.close()  # or Python warns that it was never awaited
            raise TypeError("a coroutine that the handler did not await")
    # What msgspec takes as a value comes here as a key alone.
    is_key = value is None or isinstance(value, bool | tuple | bytes)
    raise TypeError(f"{type(value).__name__}{' as a key' if is_key else ''}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def _depth(data: bytes) -> int:
    brackets = _TEXTS.sub(b"", data).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _short_enough(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError
    return 0
