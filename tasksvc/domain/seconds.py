"""What may be given as a number of seconds."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from numbers import Real

MAX_SECONDS = 366 * 86_400.0
"""The longest time that a client or a handler may ask for: a year."""


def to_seconds(value: object, name: str) -> float:
    """Returns a number of seconds or a timedelta as a float.

    Raises TypeError for any other type, also for a text, and ValueError for what is not finite or
    longer than MAX_SECONDS.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        given = type(value).__name__
        raise TypeError(f"{name} must be a number of seconds or a timedelta, not {given}.")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds) or seconds > MAX_SECONDS:
        raise ValueError(f"{name} must be a number of seconds, and at most {MAX_SECONDS:.0f}.")
    return seconds
