"""What follows a failure."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tasksvc.domain.outcome import Outcome
from tasksvc.domain.retry import (
    MESSAGE_LENGTH,
    TRACEBACK_BYTES,
    Permanent,
    RaisedElsewhere,
    Retry,
    RetryPolicy,
    Verdict,
    describe,
    trace,
)
from tasksvc.domain.seconds import MAX_SECONDS
from tasksvc.domain.task import Claim, Status


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


CLAIM = Claim("id", 1, 0, 3, "content", None, 0.0)


def after_failure(failures: int, max_attempts: int = 3, *, base: float = 1.0) -> Outcome:
    claim = Claim("id", failures + 1, failures, max_attempts, "content", None, 0.0)
    return RetryPolicy(base, 60.0).after_failure(claim, ValueError("no"))


@pytest.mark.parametrize("failures", [0, 1])
def test_failure_is_retried_while_attempts_are_left(failures: int) -> None:
    outcome = after_failure(failures)

    assert outcome.status is Status.PENDING
    assert outcome.is_charged
    assert 0 <= outcome.delay_seconds <= 2**failures
    assert outcome.error == {"type": "ValueError", "message": "no", "attempt": failures + 1}


def after(error: Exception, failures: int = 0) -> Outcome:
    claim = Claim("id", failures + 1, failures, 3, "content", None, 0.0)
    return RetryPolicy(1.0, 60.0).after_failure(claim, error)


def test_handler_may_say_when_to_try_again() -> None:
    assert after(Retry("busy", after_seconds=7)).delay_seconds == 7
    assert after(Retry(after_seconds=-1)).delay_seconds == 0
    assert 0 <= after(Retry()).delay_seconds <= 1
    assert after(Retry(after_seconds=7)).is_charged
    assert after(Retry(after_seconds=7), failures=2).status is Status.FAILED


@pytest.mark.parametrize("value", [7, 7.0, Decimal(7), Fraction(7), timedelta(seconds=7)])
def test_time_to_try_again_is_a_number_or_a_timedelta(value: Any) -> None:
    delay = after(Retry(after_seconds=value)).delay_seconds

    assert (delay, type(delay)) == (7.0, float)


@pytest.mark.parametrize("value", ["60", b"60", True, [60], object()])
def test_time_to_try_again_of_another_type_is_refused_where_it_is_made(value: Any) -> None:
    with pytest.raises(TypeError, match="after_seconds must be a number of seconds or a timedelta"):
        Retry(after_seconds=value)


TOO_LONG = [math.inf, math.nan, 1e15, 10**400, MAX_SECONDS + 1, Decimal("1e30"), timedelta.max]


@pytest.mark.parametrize("value", TOO_LONG, ids=lambda value: repr(value)[:20])
def test_time_to_try_again_has_a_bound(value: Any) -> None:
    with pytest.raises(ValueError, match=r"after_seconds must be .* at most 31622400"):
        Retry(after_seconds=value)


@pytest.mark.parametrize("value", [*TOO_LONG, "60"], ids=lambda value: repr(value)[:20])
def test_time_that_was_set_later_is_a_failure_that_tells_so(value: Any) -> None:
    error = Retry("busy")
    error.after_seconds = value

    outcome = after(error)

    assert outcome.is_charged
    assert 0 <= outcome.delay_seconds <= 1
    assert outcome.error is not None
    assert "after_seconds must be a number" in outcome.error["message"]


def test_retry_of_the_users_own_class() -> None:
    class RateLimited(Retry):
        def __init__(self, status: int) -> None:
            self.status = status

    outcome = after(RateLimited(429))

    assert outcome.error == {"type": "RateLimited", "message": "429", "attempt": 1}
    assert 0 <= outcome.delay_seconds <= 1


GROUPS: list[tuple[BaseException, Verdict]] = [
    (ExceptionGroup("g", [ValueError("a")]), Verdict()),
    (ExceptionGroup("g", [ValueError("a"), Retry(after_seconds=7)]), Verdict(False, 7)),
    (ExceptionGroup("g", [Retry(after_seconds=7), Retry(after_seconds=9)]), Verdict(False, 9)),
    (ExceptionGroup("g", [Retry(), Retry(after_seconds=0)]), Verdict(False, 0)),
    (ExceptionGroup("g", [Retry(after_seconds=7), Permanent()]), Verdict(True, 7)),
    (
        BaseExceptionGroup("g", [SystemExit(), ExceptionGroup("h", [ValueError(), Permanent()])]),
        Verdict(True),
    ),
]


@pytest.mark.parametrize(("error", "verdict"), GROUPS)
def test_group_is_judged_by_what_is_in_it(error: BaseException, verdict: Verdict) -> None:
    outcome = RetryPolicy(1.0, 60.0).after_failure(CLAIM, error)

    assert RaisedElsewhere.of(error).verdict == verdict
    assert outcome.status is (Status.FAILED if verdict.is_permanent else Status.PENDING)
    if not verdict.is_permanent and verdict.after_seconds is not None:
        assert outcome.delay_seconds == verdict.after_seconds


def test_deep_group_is_judged_too() -> None:
    error: Exception = Permanent()
    for _ in range(5_000):
        error = ExceptionGroup("g", [error])

    assert after(error).status is Status.FAILED


def test_group_tells_what_is_in_it() -> None:
    error = ExceptionGroup("many", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])])

    assert describe(error, 1) == {
        "type": "ExceptionGroup",
        "message": "many (2 sub-exceptions): ValueError: a; KeyError: 'b'",
        "attempt": 1,
    }


def test_handler_may_say_that_it_is_no_use() -> None:
    outcome = after(Permanent("no such picture"))

    assert outcome.status is Status.FAILED
    assert outcome.error == {"type": "Permanent", "message": "no such picture", "attempt": 1}


@pytest.mark.parametrize(("failures", "max_attempts"), [(2, 3), (0, 1), (5, 3)])
def test_last_failure_is_final(failures: int, max_attempts: int) -> None:
    outcome = after_failure(failures, max_attempts)

    assert outcome.status is Status.FAILED
    assert outcome.is_charged
    assert outcome.delay_seconds == 0
    assert outcome.error is not None


def test_delays_spread_over_all_of_a_growing_range(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = []
    monkeypatch.setattr("random.uniform", lambda low, high: ranges.append((low, high)) or high)
    policy = RetryPolicy(0.5, 10.0)
    for failures in (1, 2, 3, 5, 6, 10_000):
        policy.delay_seconds(failures)

    assert ranges == [(0, 0.5), (0, 1.0), (0, 2.0), (0, 8.0), (0, 10.0), (0, 10.0)]


@pytest.mark.parametrize(
    ("base", "bound", "expected"),
    [
        (None, None, (1, 60)),
        (2, None, (2, 60)),
        (None, 30, (1, 30)),
        (2, 30, (2, 30)),
        (0, 0, (0, 0)),
        (100, None, (100, 100)),
        (None, 0.5, (1, 0.5)),
    ],
)
def test_bounds_that_are_given_override_those_that_are_there(
    base: float | None, bound: float | None, expected: tuple[float, float]
) -> None:
    assert RetryPolicy(1, 60).within(base, bound) == RetryPolicy(*expected)


def test_no_base_is_no_delay() -> None:
    assert RetryPolicy(0, 60).delay_seconds(5) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(), ""),
        (ValueError("a\0b"), "ab"),
        (ValueError("\ud800!"), "?!"),
        (ValueError("ü€🙂"), "ü€🙂"),
        (ValueError("x" * 10_000), "x" * MESSAGE_LENGTH),
        (KeyError("key"), "'key'"),
        (MuteError(), "The exception could not be converted to text."),
    ],
    ids=["empty", "nul", "surrogate", "unicode", "long", "key", "mute"],
)
def test_error_is_described_in_what_the_database_takes(error: Exception, message: str) -> None:
    described = describe(error, 2)

    assert described == {"type": type(error).__name__, "message": message, "attempt": 2}
    assert "\\u0000" not in json.dumps(described)
    json.dumps(described, ensure_ascii=False).encode()


def raised(error: Exception) -> Exception:
    """The error, with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ("no", "ValueError: no\n"),
        ("a\0b", "ValueError: ab\n"),
        ("\ud800!", "ValueError: ?!\n"),
    ],
    ids=["plain", "nul", "surrogate"],
)
def test_traceback_is_what_the_database_takes(message: str, end: str) -> None:
    traced = trace(raised(ValueError(message)))

    assert traced is not None
    assert traced.startswith("Traceback (most recent call last):\n")
    assert traced.endswith(end)
    assert "raise error" in traced


@pytest.mark.parametrize("letter", ["x", "ü", "€", "🙂"])
def test_end_of_a_long_traceback_is_kept(letter: str) -> None:
    traced = trace(raised(ValueError(letter * 10_000 + "end")))

    assert traced is not None
    assert TRACEBACK_BYTES - 3 <= len(traced.encode()) <= TRACEBACK_BYTES
    assert traced.strip(letter) == "end\n"


def test_endless_recursion_has_a_traceback() -> None:
    def recurse() -> None:
        recurse()

    try:
        recurse()
    except RecursionError as error:
        traced = trace(error)

    assert traced is not None
    assert traced.endswith("RecursionError: maximum recursion depth exceeded\n")


def test_end_of_a_long_chain_is_kept_and_takes_no_time() -> None:
    error = ValueError("first")
    for _ in range(20_000):
        error, error.__cause__ = ValueError("next"), error
    began = time.monotonic()

    traced = trace(raised(error))

    assert traced is not None
    assert traced.endswith("raise error\nValueError: next\n")
    assert time.monotonic() - began < 0.2


def test_error_that_does_not_bear_to_be_looked_at_has_none() -> None:
    class Shy(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise RuntimeError("do not look")

    assert trace(raised(Shy())) is None


def test_error_that_can_not_say_what_it_is_has_a_traceback() -> None:
    traced = trace(raised(MuteError()))

    assert traced is not None
    assert "raise error" in traced


class Says(Exception):
    """Does what it was given when it is to say what it is."""

    def __init__(self, what: Callable[[], Any]) -> None:
        self.what = what

    def __str__(self) -> str:
        return self.what()  # type: ignore[no-any-return]


def throw(error: BaseException) -> Any:
    raise error


def made(name: str, **namespace: Any) -> Exception:
    """An error of a class with these attributes."""
    error: Exception = type(name, (Exception,), namespace)("no")
    return error


class Meta(type):
    """A class that says no name, and belongs to nothing."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit

    def __instancecheck__(cls, instance: object) -> bool:
        raise SystemExit


class Text(str):
    """A text that can't be used like one."""

    def __getitem__(self, key: Any) -> Any:
        raise SystemExit


def chained(count: int) -> Exception:
    error = ValueError("first")
    for _ in range(count):
        error, error.__cause__ = ValueError("next"), error
    return error


def circular() -> Exception:
    error = ValueError("again")
    error.__cause__ = error.__context__ = error
    return error


ODD: dict[str, Exception] = {
    "recursion": Says(lambda: throw(RecursionError())),
    "exit": Says(lambda: throw(SystemExit(3))),
    "interrupt": Says(lambda: throw(KeyboardInterrupt())),
    "canceled": Says(lambda: throw(asyncio.CancelledError())),
    "closed": Says(lambda: throw(GeneratorExit())),
    "no text": Says(lambda: 5),
    "none": Says(lambda: None),
    "another text": Says(lambda: Text("x" * 600)),
    "class": made("E", __class__=property(lambda self: throw(SystemExit()))),
    "class that lies": made("E", __class__=Permanent),
    "cause": made("E", __cause__=property(lambda self: throw(SystemExit()))),
    "context": made("E", __context__=property(lambda self: throw(KeyboardInterrupt()))),
    "notes": made("E", __notes__=property(lambda self: throw(SystemExit()))),
    "notes that are none": made("E", __notes__=5),
    "traceback": made("E", __traceback__=property(lambda self: throw(SystemExit()))),
    "getattribute": made("E", __getattribute__=lambda self, name: throw(SystemExit())),
    "repr": made("E", __repr__=lambda self: throw(SystemExit()), __str__=object.__str__),
    "metaclass": Meta("M", (Exception,), {})("no"),
    "long name": made("N" * 10_000),
    "huge": ValueError("x" * 10_000_000),
    "surrogate and nul": ValueError("\ud800\0" * 1000),
    "no string in it": UnicodeDecodeError("utf-8", b"\xff" * 10_000, 0, 1, "\ud800"),
    "syntax": SyntaxError("no", ("file", "line", 5, object())),  # type: ignore[arg-type]
    "chain": chained(3_000),
    "circle": circular(),
    "retry": type(
        "R",
        (Retry,),
        {"after_seconds": property(lambda self: throw(SystemExit()), lambda self, value: None)},
    )(),
    "group": type(
        "G", (ExceptionGroup,), {"exceptions": property(lambda self: throw(SystemExit()))}
    )("g", [Permanent()]),
    "attributes of slots": OSError(10**400, "\0", "\ud800"),
}
ODD["group of them"] = ExceptionGroup("all", list(ODD.values()))
ODD["group of itself"] = type(
    "G", (ExceptionGroup,), {"exceptions": property(lambda self: [self])}
)("g", [ValueError()])
ODD["wide group"] = ExceptionGroup("g", [raised(ValueError()) for _ in range(20_000)])


@pytest.mark.parametrize("name", ODD)
def test_odd_error_is_a_failure_like_any_other(name: str) -> None:
    error = ODD[name]
    began = time.monotonic()

    for told in (error, raised(error), RaisedElsewhere.of(error)):
        outcome = RetryPolicy(1.0, 60.0).after_failure(CLAIM, told)

        assert outcome.is_charged
        assert outcome.error is not None
        text = json.dumps(outcome.error, ensure_ascii=False) + (outcome.traceback or "")
        assert "\0" not in text
        assert "\\u0000" not in text
        assert len(text.encode()) < 12_000
        assert len(outcome.error["message"]) <= MESSAGE_LENGTH
    assert time.monotonic() - began < 2


def test_group_with_the_same_member_many_times_is_described_at_once() -> None:
    error = raised(ValueError("the reason"))
    for _ in range(30):
        error = ExceptionGroup("g", [error, error])  # a billion of them
    began = time.monotonic()

    outcome = after(error)

    assert time.monotonic() - began < 0.5
    assert outcome.traceback is not None
    assert "ValueError: the reason" in outcome.traceback


def test_failure_has_its_traceback() -> None:
    for outcome in (after(raised(Retry())), after(raised(Retry(after_seconds=1)))):
        assert outcome.traceback is not None
        assert outcome.traceback.endswith("tasksvc.domain.retry.Retry\n")
    assert after(raised(Permanent())).traceback is not None
