"""Steps of the service after which a test can end the process."""

from __future__ import annotations

import functools
import os
from typing import Any

from tasksvc.store.schedule_store import ScheduleStore
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream
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
