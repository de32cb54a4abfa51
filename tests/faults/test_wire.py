"""Networks that exist at the same time must not share addresses."""

import socket

import pytest

from tests.faults import wire
from tests.faults.wire import Wire, WireError


def test_two_wires_that_draw_the_same_block_get_different_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = [[7], [7, 8]]
    monkeypatch.setattr(wire.random.SystemRandom, "sample", lambda *_: draws.pop(0))
    try:
        with Wire() as first, Wire() as second:
            assert first.address != second.address
            listener = second.listener()
            listener.listen()
            with listener, socket.create_connection(listener.getsockname(), 2):
                pass
    except WireError as error:
        pytest.skip(str(error))
