"""The service with a handler that tells when it starts: `python -m ops.bench.worker`.

Each start goes to the UDP port STARTS_PORT, as the task's id and the seconds of the machine's
clock.
"""

from __future__ import annotations

import os
import socket
import time

from tasksvc import logs
from tasksvc.cli.ending import Ending
from tasksvc.cli.serve import serve
from tasksvc.domain.task import Claim
from tasksvc.handlers import Handler
from tasksvc.settings import Settings


def telling(port: int) -> Handler:
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.connect(("127.0.0.1", port))

    async def handle(claim: Claim) -> None:
        started_at = time.monotonic()
        line.send(f"{claim.id} {started_at!r}".encode())

    return handle


def main() -> None:
    settings = Settings.from_env()
    with Ending(settings.grace_seconds + 5.0) as ending:
        with logs.configured(settings.log_level, settings.log_file_path):
            serve(settings, ending, {}, telling(int(os.environ["STARTS_PORT"])))
        ending.end(0)


if __name__ == "__main__":
    main()
