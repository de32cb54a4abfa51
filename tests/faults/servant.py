"""The service as a process that can be told to misbehave: `python -m tests.faults.servant`.

It is the whole real service, with a handler that writes down what it does, and, when asked:

- `FAILPOINT=after_claim` dies there with exit code 137, the first time it has something in hand
  (`FAILPOINT_AT=3`: the third time);
- `MUTANT=no_fence` lacks one of the guards that the checker has to notice the loss of.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from tasksvc import logs, service
from tasksvc.app import load_handlers
from tasksvc.domain.task import Claim
from tasksvc.ending import Ending
from tasksvc.serve import serve
from tasksvc.settings import Settings
from tasksvc.store.schedule_store import ScheduleStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
from tests.faults import handlers, mutants
from tests.faults.handlers import DIED

FAILPOINTS: dict[str, tuple[type, str]] = {
    "after_insert": (TaskStore, "insert_tasks"),
    "after_held_insert": (TaskStore, "insert_held_tasks"),
    "after_telling": (TaskStream, "publish_to"),
    "after_publication": (TaskStream, "publish"),
    "after_claim": (TaskStore, "claim_tasks"),
    "after_effect": (TaskStore, "finish_tasks"),  # before it, that is
    "after_finish": (TaskStore, "finish_tasks"),
    "before_acknowledgement": (TaskStream, "acknowledge"),
    "after_cancel": (TaskStore, "cancel_tasks"),
    "after_release": (TaskStore, "release_tasks"),
    "after_rescue": (TaskStore, "rescue_tasks"),
    "after_republication": (TaskStore, "publish_due_tasks"),
    "before_schedule": (ScheduleStore, "run_schedules"),
    "after_schedule": (ScheduleStore, "run_schedules"),
}
_BEFORE = {"after_effect", "before_acknowledgement", "before_schedule"}


def arm(name: str, at: int = 1) -> None:
    """The process dies when it comes to this step with something in hand."""
    owner, method = FAILPOINTS[name]
    original = getattr(owner, method)
    count = 0

    @functools.wraps(original)
    async def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if name in _BEFORE:
            count += 1
            if count >= at:
                os._exit(DIED)
        result = await original(*args, **kwargs)
        if result:
            count += 1
            if count >= at:
                os._exit(DIED)
        return result

    setattr(owner, method, armed)


async def handle(claim: Claim) -> None:
    """What tasks without a kind do."""
    await handlers.obey(claim.content, claim)


def main() -> None:
    # Keys are taken all the time here. A minute would leave the quick statement out.
    service._CAREFUL_SECONDS = 0.5
    if name := os.environ.get("MUTANT"):
        mutants.MUTANTS[name]()
    if name := os.environ.get("FAILPOINT"):
        arm(name, int(os.environ.get("FAILPOINT_AT", "1")))
    settings = Settings.from_env()
    with Ending(settings.grace_seconds + 5.0) as ending:
        with logs.configured(settings.log_level, settings.log_file_path):
            serve(settings, ending, load_handlers(settings), handle)
        ending.end(0)


if __name__ == "__main__":
    main()
