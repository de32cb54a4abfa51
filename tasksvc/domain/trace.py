"""Trace context: what ties the work of several systems together.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import secrets

_TRACEPARENT = re.compile(
    r"((?!ff)[0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)

_LENGTH = 55
"""Of version 00. A later version may be longer, and begins the same."""


def read_traceparent(value: str | None) -> str | None:
    """Returns the header's value without what a later version adds; None for an invalid one."""
    if value is None or (found := _TRACEPARENT.fullmatch(value)) is None:
        return None
    if found[1] == "00" and found[5] is not None:
        return None
    return value[:_LENGTH]


def trace_id_of(traceparent: str) -> str:
    """Returns the 32 hexadecimal digits of the trace."""
    return traceparent[3:35]


def child_of(traceparent: str) -> str:
    """Returns the header for a call that is a part of the work: the same trace, a new parent."""
    return f"00-{trace_id_of(traceparent)}-{secrets.token_hex(8)}-{traceparent[53:]}"
