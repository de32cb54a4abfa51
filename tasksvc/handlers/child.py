"""What the process of a handler does."""

from __future__ import annotations

import os
import pkgutil
import select
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import Any

from tasksvc import logs
from tasksvc.domain.retry import RaisedElsewhere
from tasksvc.domain.task import Claim, kept_fraction, kept_message
from tasksvc.handlers.channel import MAX_BYTES, Sender
from tasksvc.handlers.context import SyncContext, about, deadline
from tasksvc.handlers.results import encode

_HEAD_BYTES = 1_000
"""Of a message in addition to its result."""


def run(
    connection: socket.socket,
    service: int,
    where: str,
    claim: Claim,
    level: int,
    max_result_bytes: int,
) -> None:
    """Calls the function that is there (`module:name`); what it reports, logs and returns goes to
    the service, which is the process of that number."""
    os.setsid()  # all that it starts can be ended with it
    process = os.getpid()
    threading.Thread(target=_end_with, args=(connection, service), daemon=True).start()
    sender = Sender(connection)
    send = sender.send
    logs.relay(level, partial(send, "line"), **about(claim))
    try:
        function: Any = pkgutil.resolve_name(where)
        logs.keep()  # the module may have configured logging
        send("begun")
        context = SyncContext(
            claim.id,
            claim.attempt,
            claim.kind,
            deadline(claim),
            claim.traceparent,
            lambda fraction, message: send(
                "progress", kept_fraction(fraction), kept_message(message)
            ),
            lambda: False,
        )
        result = function(claim.content, context)
        if result is not None:
            result = encode(result, min(max_result_bytes, MAX_BYTES - _HEAD_BYTES))
        answer: tuple[Any, ...] = ("result", result)
    except BaseException as error:
        raised = RaisedElsewhere.of(error)
        answer = ("error", raised.name, raised.message, raised.traceback, tuple(raised.verdict))
    if os.getpid() != process:
        os._exit(1)  # the function has forked, and this is the other one
    with suppress(OSError):  # the service is gone
        send(*answer)


def _end_with(connection: socket.socket, service: int) -> None:
    """Ends this process and all that it has started, when the service is gone: the
    result has no reader. The connection alone would not show that, while a process that the
    service has forked has its other end too."""
    watched: list[Any] = [connection]
    with suppress(OSError, AttributeError):  # Linux alone has it
        watched.append(os.pidfd_open(service))
    with suppress(OSError, ValueError):
        select.select(watched, [], [])  # nothing is ever sent this way
    os.killpg(os.getpgid(0), signal.SIGKILL)
