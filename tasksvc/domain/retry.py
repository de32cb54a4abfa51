"""When a failed attempt is followed by another, and after how long."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass
from typing import Any

from tasksvc.domain import outcome
from tasksvc.domain.outcome import Outcome
from tasksvc.domain.task import Claim

MESSAGE_LENGTH = 500
"""Characters of an exception's message that are kept with the task."""

TRACEBACK_BYTES = 8192
"""Of a traceback, from its end: there is what was raised, and where."""

_FRAMES = 50
"""More of one stack would hardly fit."""


class Retry(Exception):
    """Raised by a handler: it failed, and wants to be tried again after so long.

    It counts as a failure like any other. Without `after_seconds` the usual backoff holds.
    """

    def __init__(self, message: str = "", *, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Permanent(Exception):
    """Raised by a handler: it failed, and another attempt would fail like it."""


class RaisedElsewhere(Exception):
    """Stands for an error of another process, whose class may be known there alone."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        return self.message


class TimedOut(Exception):
    """It ran for longer than it may."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, between bounds.

    Full jitter spreads a herd of failures best: M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015.
    """

    base_seconds: float
    max_seconds: float

    def within(self, base_seconds: float | None, max_seconds: float | None) -> RetryPolicy:
        """The same with other bounds; None keeps the one that there is. A new base above the kept
        maximum lifts it."""
        if max_seconds is None:
            max_seconds = max(base_seconds or 0.0, self.max_seconds)
        return RetryPolicy(self.base_seconds if base_seconds is None else base_seconds, max_seconds)

    def after_failure(self, claim: Claim, error: BaseException) -> Outcome:
        """What an attempt that raised `error` comes to."""
        described, traced = describe(error, claim.attempt), trace(error)
        failures = claim.failures + 1
        if failures >= claim.max_attempts or isinstance(error, Permanent):
            return outcome.failed(described, traced)
        if isinstance(error, Retry) and error.after_seconds is not None:
            return outcome.retried(described, max(0.0, error.after_seconds), traced)
        return outcome.retried(described, self.delay_seconds(failures), traced)

    def delay_seconds(self, failures: int) -> float:
        """A random delay below `base * 2^(failures - 1)`, and never above the bound."""
        ceiling = min(self.max_seconds, self.base_seconds * 2.0 ** min(failures - 1, 60))
        return random.uniform(0, ceiling)


def describe(error: BaseException, attempt: int) -> dict[str, Any]:
    """An exception as the task's `error` field shows it: never its traceback."""
    message = _fitting(_text(error)[:MESSAGE_LENGTH]).decode()
    name = error.name if isinstance(error, RaisedElsewhere) else type(error).__name__
    return {"type": name, "message": message, "attempt": attempt}


def trace(error: BaseException) -> str | None:
    """The traceback of an exception, as the history of its task shows it."""
    try:
        text = "".join(traceback.format_exception(error, limit=-_FRAMES))
    except Exception:  # it takes part in its own description
        return None
    return _fitting(text)[-TRACEBACK_BYTES:].decode("utf-8", "ignore")


def _fitting(text: str) -> bytes:
    """UTF-8 without what does not fit into PostgreSQL's text: NUL and lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "This error can't say what it is."
