"""The service as a process that misbehaves on request: `python -m tests.faults.servant`.

It is the whole real service, with a handler that writes down what it does, and, when asked:

- `FAILPOINT=after_claim` dies there with exit code 137, the first time it has something in hand
  (`FAILPOINT_AT=3`: the third time);
- `MUTANT=no_fence` lacks one of the guards that the checker has to notice the loss of.
"""

from __future__ import annotations

import os

from tasksvc.domain.task import Claim


async def handle(claim: Claim) -> None:
    """What tasks without a kind do."""
    from tests.faults import handlers

    await handlers.obey(claim.content, claim)


def main() -> None:
    # Here, because each process of a handler imports the module of the program again.
    from tasksvc import logs
    from tasksvc.app import load_handlers
    from tasksvc.cli.ending import Ending
    from tasksvc.cli.serve import serve
    from tasksvc.services import tasks as service
    from tasksvc.settings import Settings
    from tests.faults import failpoints, mutants

    # Keys are taken all the time here. A minute would leave the quick statement out.
    service._CAREFUL_SECONDS = 0.5
    if name := os.environ.get("MUTANT"):
        mutants.MUTANTS[name]()
    if name := os.environ.get("FAILPOINT"):
        failpoints.arm(name, int(os.environ.get("FAILPOINT_AT", "1")))
    settings = Settings.from_env()
    with Ending(settings.grace_seconds + 5.0) as ending:
        with logs.configured(settings.log_level, settings.log_file_path):
            serve(settings, ending, load_handlers(settings), handle)
        ending.end(0)


if __name__ == "__main__":
    main()
