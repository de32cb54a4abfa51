"""What follows a failure."""

from __future__ import annotations

import json

import pytest

from tasksvc.domain.outcome import Outcome
from tasksvc.domain.retry import (
    MESSAGE_LENGTH,
    TRACEBACK_BYTES,
    Permanent,
    Retry,
    RetryPolicy,
    describe,
    trace,
)
from tasksvc.domain.task import Claim, Status


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


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
        (MuteError(), "This error can't say what it is."),
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


def test_failure_has_its_traceback() -> None:
    for outcome in (after(raised(Retry())), after(raised(Retry(after_seconds=1)))):
        assert outcome.traceback is not None
        assert outcome.traceback.endswith("tasksvc.domain.retry.Retry\n")
    assert after(raised(Permanent())).traceback is not None
