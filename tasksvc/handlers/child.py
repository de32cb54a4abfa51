"""What the process of a handler does."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from tasksvc import logs
from tasksvc.domain.retry import RaisedElsewhere
from tasksvc.domain.task import Claim
from tasksvc.handlers.context import SyncContext, deadline


def run(theirs: Connection, where: tuple[str, str], claim: Claim, level: int) -> None:
    """Calls the function that is there; what it reports, logs and returns goes to the service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service is told, and tells us
    threading.Thread(target=_end_with, args=(theirs,), daemon=True).start()
    turn = threading.Lock()

    def send(*message: Any) -> None:
        with turn:  # the function may have threads
            theirs.send(message)

    logs.relay(level, lambda line: send("line", line), task_id=claim.id, attempt=claim.attempt)
    try:
        function: Any = import_module(where[0])
        for name in where[1].split("."):
            function = getattr(function, name)
        send("begun")
        context = SyncContext(
            claim.id,
            claim.attempt,
            claim.kind,
            deadline(claim),
            lambda fraction, message: send("progress", fraction, message),
            lambda: False,
        )
        answer: tuple[Any, ...] = ("result", function(claim.content, context))
    except BaseException as error:
        answer = ("error", *_told(error))
    try:
        send(*answer)
    except Exception as error:  # it can't be pickled
        send("error", *_told(error))


def _end_with(theirs: Connection) -> None:
    """Ends this process when the service is gone: nobody wants the result any more."""
    with suppress(EOFError, OSError):
        theirs.recv()  # nothing is ever sent this way
    os._exit(1)


def _told(error: BaseException) -> tuple[Any, ...]:
    """The error in what any process can read."""
    told = RaisedElsewhere.of(error)
    return told.name, told.message, told.traceback, tuple(told.verdict)
