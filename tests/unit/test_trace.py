"""The header traceparent, as the W3C defines it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksvc.domain.trace import child_of, read_traceparent, trace_id_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (VALID, VALID),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", f"cc-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (VALID.upper(), None),
        (f"{VALID}\n", None),
        ("", None),
        (None, None),
    ],
)
def test_what_is_valid(value: str | None, read: str | None) -> None:
    assert read_traceparent(value) == read


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?"))
def test_whatever_is_read_is_read_again_and_has_children(value: str) -> None:
    read = read_traceparent(value)

    if read is not None:
        assert read_traceparent(read) == read
        child = child_of(read)
        assert read_traceparent(child) == child
        assert trace_id_of(child) == trace_id_of(read)
        assert child[36:52] != read[36:52]
