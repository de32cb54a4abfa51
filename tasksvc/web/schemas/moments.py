"""Moments as they are written: RFC 3339, in and out."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_TIME = r"[Tt ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?"
_OFFSET = r"[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d"
_RFC_3339 = re.compile(rf"\d{{4}}-\d\d-\d\d(?:{_TIME}(?:{_OFFSET})?)?", re.ASCII)
"""https://datatracker.ietf.org/doc/html/rfc3339#section-5.6, and what is read as UTC: a date alone,
which is its midnight, and a time without an offset."""

RULE = "Must be a time as in RFC 3339, such as 2026-11-24T17:02:11Z."


def read_moment(text: str) -> datetime:
    """In UTC; microseconds are kept of its fraction. Raises ValueError for what is no moment, or
    one beyond the years 1 to 9999."""
    if not _RFC_3339.fullmatch(text):
        raise ValueError(RULE)
    moment = datetime.fromisoformat(text.upper())
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(RULE) from None


def shown_moment(moment: datetime) -> datetime | str:
    """In UTC, always with six digits and `Z`, once orjson or msgspec has written it."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    if moment.microsecond:
        return moment  # both write it so, unless all six digits are zeros
    return f"{moment.isoformat(timespec='microseconds')[:26]}Z"
