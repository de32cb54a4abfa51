"""Runs the service for as long as its parent lives: `python -m tasksvc.testing.child`."""

from __future__ import annotations

import os
import signal
import sys
import threading

from tasksvc.cli.main import main


def _end_with_owner() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: this is the end of the pipe
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_owner, daemon=True).start()
    main(["run"], prog_name="tasksvc")
