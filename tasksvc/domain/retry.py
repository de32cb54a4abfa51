"""When a failed attempt is followed by another, and after how long."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple

from tasksvc.domain import outcome
from tasksvc.domain.outcome import Outcome
from tasksvc.domain.seconds import to_seconds
from tasksvc.domain.task import Claim

MESSAGE_LENGTH = 500
"""Characters of an exception's message that are kept with the task."""

TRACEBACK_BYTES = 8192
"""Bytes of a traceback that are kept: its end, which says what was raised and where."""

_NAME_LENGTH = 100

_FRAMES = 50
"""Frames of one stack that are formatted: more would hardly fit."""

_CHAIN = 60
"""Errors of one chain that are formatted: more would hardly fit, and thousands take a second."""

_FORMATTED = 200
"""Errors that are formatted with all that led to them, members of groups as well. Python formats
each member as often as it is in a group, so 30 groups within each other can hold a billion."""

_MEMBERS = 10_000
"""Members of a group of exceptions that are examined."""

_NAMED_MEMBERS = 3
"""Members of a group of exceptions that its message names."""


class Retry(Exception):
    """Raised by a handler that failed and asks for another attempt after `after_seconds`.

    It counts as a failure like any other. Without `after_seconds` the usual backoff applies; a time
    below 0 is 0.

    Raises TypeError when `after_seconds` is neither a number nor a timedelta, and ValueError when
    it is not finite or more than 31,622,400 seconds (366 days). Then the handler fails with that
    error, and the usual backoff applies.
    """

    after_seconds: float | None = None

    def __init__(
        self, message: str = "", *, after_seconds: float | timedelta | None = None
    ) -> None:
        super().__init__(message)
        self.after_seconds = _wait(after_seconds)


class Permanent(Exception):
    """Raised by a handler that failed and would fail again in another attempt."""


class TimedOut(Exception):
    """The run took longer than its time limit."""


class Verdict(NamedTuple):
    """What an error means for another attempt."""

    is_permanent: bool = False
    after_seconds: float | None = None
    """None is the usual backoff."""


class RaisedElsewhere(Exception):
    """Stands for an error of another process, whose class may exist only there."""

    def __init__(self, name: str, message: str, traceback: str | None, verdict: Verdict) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message
        self.traceback = traceback
        self.verdict = verdict
        if traceback is not None:
            self.add_note(traceback)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, error: BaseException) -> RaisedElsewhere:
        """Returns an error for another process. Raises nothing."""
        without_frames_of_the_service(error)
        error, verdict = _judged(error)
        return cls(_name(error), _message(error), trace(error), verdict)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, between bounds.

    Full jitter spreads a herd of failures best: M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015.
    """

    base_seconds: float
    max_seconds: float

    def within(self, base_seconds: float | None, max_seconds: float | None) -> RetryPolicy:
        """Returns the policy with other bounds; None keeps the current one. A new base above the
        kept maximum raises the maximum to it."""
        if max_seconds is None:
            max_seconds = max(base_seconds or 0.0, self.max_seconds)
        return RetryPolicy(self.base_seconds if base_seconds is None else base_seconds, max_seconds)

    def after_failure(self, claim: Claim, error: BaseException) -> Outcome:
        """Returns the outcome of an attempt that raised `error`. Raises nothing, whatever the error
        is.

        The members of a group of exceptions decide, at any depth: with one Permanent the failure is
        permanent; otherwise the longest `after_seconds` of a Retry is the delay.
        """
        without_frames_of_the_service(error)
        error, verdict = _judged(error)
        described, traced = describe(error, claim.attempt), trace(error)
        failures = claim.failures + 1
        if failures >= claim.max_attempts or verdict.is_permanent:
            return outcome.failed(described, traced)
        if verdict.after_seconds is not None:
            return outcome.retried(described, verdict.after_seconds, traced)
        return outcome.retried(described, self.delay_seconds(failures), traced)

    def delay_seconds(self, failures: int) -> float:
        """Returns a random delay in seconds, below `base * 2^(failures - 1)` and at most the
        maximum."""
        ceiling = min(self.max_seconds, self.base_seconds * 2.0 ** min(failures - 1, 60))
        return random.uniform(0, ceiling)


def describe(error: BaseException, attempt: int) -> dict[str, Any]:
    """Returns an exception as the task's `error` field shows it, without the traceback. Raises
    nothing."""
    return {"type": _name(error), "message": _message(error), "attempt": attempt}


def trace(error: BaseException) -> str | None:
    """Returns the traceback of an exception as the task's history shows it; None where it can't be
    formatted. Raises nothing."""
    if _is_a(error, RaisedElsewhere):
        return error.traceback  # type: ignore[attr-defined,no-any-return]
    try:
        if len(chain := list(_chain(error))) < _CHAIN and _is_small(error):
            parts = traceback.format_exception(error, limit=-_FRAMES)
        else:
            parts = [part for each in reversed(chain) for part in _parts(each)]
    except BaseException:  # it takes part in its own description, and may raise anything
        return None
    text = ""
    for part in reversed(parts):  # without joining a message of 10 MB
        text = part[-TRACEBACK_BYTES:] + text
        if len(text) >= TRACEBACK_BYTES:
            break
    return _fitting(text)[-TRACEBACK_BYTES:].decode("utf-8", "ignore")


def without_frames_of_the_service(error: BaseException) -> None:
    """Shortens the traceback so that it begins in the handler's own code, if that is in it. Raises
    nothing."""
    if _is_a(error, RaisedElsewhere):
        BaseException.with_traceback(error, None)  # the one that counts came along as text
        return
    own: TracebackType | None = _TRACEBACK.__get__(error)
    while own is not None and _is_of_the_service(own.tb_frame.f_globals.get("__name__")):
        own = own.tb_next
    if own is not None:
        BaseException.with_traceback(error, own)


def is_expected(error: BaseException) -> bool:
    """Returns whether the error's text is enough for the log: a handler raised it on purpose, or
    the service did."""
    if _is_a(error, RaisedElsewhere):
        return error.name in ("Permanent", "Retry")  # type: ignore[attr-defined]
    return _is_a(error, Permanent, Retry) or _is_of_the_service(
        _dict_of(type(error)).get("__module__")
    )


def _dict_of(kind: type) -> Any:
    return type.__dict__["__dict__"].__get__(kind)  # a metaclass may have another


def _is_of_the_service(module: object) -> bool:
    return type(module) is str and module.startswith("tasksvc.")


_TRACEBACK: Any = BaseException.__dict__["__traceback__"]


# An exception is a user's code. Its `__str__`, `__class__`, attributes or metaclass may raise or
# lie, so the functions below ask `type(error)`, and guard every other access.


def _is_a(error: BaseException, *classes: type[BaseException]) -> bool:
    return issubclass(type(error), classes)


def _judged(error: BaseException) -> tuple[BaseException, Verdict]:
    """Returns the error with its verdict. An error whose `after_seconds` is invalid is replaced by
    the error that says so."""
    if _is_a(error, RaisedElsewhere):
        return error, error.verdict  # type: ignore[attr-defined]
    try:
        is_permanent, longest = False, None
        for each in _members(error):
            is_permanent = is_permanent or _is_a(each, Permanent)
            if _is_a(each, Retry) and (wait := _wait(each.after_seconds)) is not None:  # type: ignore[attr-defined]
                longest = wait if longest is None else max(longest, wait)
        return error, Verdict(is_permanent, longest)
    except BaseException as wrong:  # it was set to what its constructor refuses, or can't be read
        return wrong, Verdict()


def _members(error: BaseException) -> Iterator[BaseException]:
    """Yields all members of a group, at any depth, in order; or the error itself."""
    waiting = [error]
    for _ in range(_MEMBERS):
        if not waiting:
            return
        each = waiting.pop()
        if _is_a(each, BaseExceptionGroup):
            waiting += reversed(BaseExceptionGroup.exceptions.__get__(each))
        else:
            yield each


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, then its cause or the error that was being handled, and so on; at most
    _CHAIN."""
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen and len(seen) < _CHAIN:
        yield each
        seen.add(id(each))
        attributes = BaseException.__dict__
        each = attributes["__cause__"].__get__(each) or attributes["__context__"].__get__(each)


def _is_small(error: BaseException) -> bool:
    """Returns whether the error is small enough to format. It follows the same links as Python's
    `traceback`."""
    waiting, seen = [error], set[int]()
    for _ in range(_FORMATTED):
        if not waiting:
            return True
        each = waiting.pop()
        seen.add(id(each))
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        led_to_it = (each.__cause__, each.__context__)
        waiting += [one for one in led_to_it if one is not None and id(one) not in seen]
    return False


def _parts(error: BaseException) -> list[str]:
    """Returns the traceback without the chain of the error. For a group, its first members
    follow."""
    parts = ["\nTraceback (most recent call last):\n"]
    parts += traceback.format_tb(_TRACEBACK.__get__(error), limit=-_FRAMES)
    parts.append(f"{_name(error)}: {_text(error)}\n")
    if _is_a(error, BaseExceptionGroup):
        for each in islice(_members(error), _NAMED_MEMBERS):
            parts += _parts(each)
    return parts


def _wait(after_seconds: object) -> float | None:
    return None if after_seconds is None else max(0.0, to_seconds(after_seconds, "after_seconds"))


def _name(error: BaseException) -> str:
    if _is_a(error, RaisedElsewhere):
        return error.name  # type: ignore[attr-defined,no-any-return]
    name: str = type.__dict__["__name__"].__get__(type(error))
    return _fitting(name[:_NAME_LENGTH]).decode()


def _message(error: BaseException) -> str:
    text = _text(error)
    if _is_a(error, BaseExceptionGroup):
        members = [
            f"{_name(each)}: {_text(each)}" for each in islice(_members(error), _NAMED_MEMBERS)
        ]
        text = f"{text}: {'; '.join(members)}"
    return _fitting(text[:MESSAGE_LENGTH]).decode()


def _text(error: BaseException) -> str:
    try:
        return str.__getitem__(str(error), slice(MESSAGE_LENGTH))
    except BaseException:
        return "The exception could not be converted to text."


def _fitting(text: str) -> bytes:
    """Returns the text as UTF-8 without what PostgreSQL's text type rejects: NUL and lone
    surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace")
