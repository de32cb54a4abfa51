"""The service with one guard taken out: what the checker has to notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tasksvc.consumers.executor import Executor
from tasksvc.domain import outcome
from tasksvc.domain.outcome import Outcome
from tasksvc.domain.retry import RetryPolicy
from tasksvc.domain.task import Claim, Hold, NewTask
from tasksvc.duties.loop_guard import LoopGuard
from tasksvc.logs import lines
from tasksvc.runs import Run
from tasksvc.store import queries
from tasksvc.store.task_store import TaskStore
from tasksvc.stream import task_stream
from tasksvc.stream.task_stream import TaskStream
from tasksvc.web import bodies


def _replace_in_query(name: str, *replacements: tuple[str, str]) -> None:
    original = queries.load

    def load(file: str) -> dict[str, str]:
        loaded = original(file)
        for old, new in replacements:
            if name in loaded:
                assert old in loaded[name], f"{name} has no {old!r}"
                loaded[name] = loaded[name].replace(old, new)
        return loaded

    queries.load = load  # type: ignore[assignment]


def no_fence() -> None:
    """A result is written whichever attempt it is of."""
    _replace_in_query("complete_tasks", ("AND task.attempt = done.attempt", ""))
    _replace_in_query("finish_tasks", ("AND task.attempt = result.attempt", ""))


def no_watermark() -> None:
    """What was lost after its publication is not looked for."""
    _replace_in_query(
        "publish_due_tasks",
        (
            "published_at <= statement_timestamp()",
            "false AND published_at <= statement_timestamp()",
        ),
    )


def acknowledge_first() -> None:
    """An entry is acknowledged before its task is finished."""
    original = TaskStream.read

    async def read(self: TaskStream, *args: Any) -> Any:
        entries = await original(self, *args)
        if entries:
            await self.acknowledge([entry for entry, _ in entries])
        return entries

    TaskStream.read = read  # type: ignore[method-assign]


def cancel_anything() -> None:
    """A cancel changes final tasks too. (The guard in the database has to go as well.)"""
    _replace_in_query(
        "cancel_tasks",
        ("AND status IN ('pending', 'processing')", ""),
        ("AND status = ANY(%(statuses)s::task_status[])", ""),
    )


def group_from_the_end() -> None:
    """The group starts at `$`: what was in the stream already is skipped."""
    task_stream._START = "$"


def rescue_the_living() -> None:
    """The rescuer takes tasks from every worker."""
    _replace_in_query("rescue_tasks", ("AND worker_id = ANY(%(worker_ids)s::uuid[])", ""))


def uncharged_rescue() -> None:
    """A dead holder is not counted: a task that kills its worker never ends."""
    _replace_in_query("rescue_tasks", ("failures = failures + 1", "failures = failures"))


def claim_early() -> None:
    """A claim does not ask whether a task is due."""
    _replace_in_query("claim_tasks", ("AND task.due_at <= statement_timestamp()", ""))


def forget_keys() -> None:
    """An Idempotency-Key is not kept with its task."""
    original = TaskStore.insert_tasks_with_options

    async def insert(self: TaskStore, tasks: Sequence[NewTask], hold: Hold | None) -> Any:
        return await original(self, [task._replace(key=None) for task in tasks], hold)

    TaskStore.insert_tasks_with_options = insert  # type: ignore[method-assign]


def uncounted_queue() -> None:
    """A claim does not count what runs of a queue."""
    _replace_in_query("claim_tasks", ("lock_queue(name)", "1000000000"))


def start_beyond_the_limit() -> None:
    """What starts with its create is not asked whether its queue has a limit."""
    _replace_in_query(
        "insert_tasks_with_options", ("concurrency IS NULL AND NOT is_paused", "true")
    )


def endless_attempts() -> None:
    """A handler that fails is always tried again."""
    original = RetryPolicy.after_failure

    def after_failure(self: RetryPolicy, claim: Claim, error: BaseException) -> Outcome:
        return original(self, claim._replace(max_attempts=1000), error)

    RetryPolicy.after_failure = after_failure  # type: ignore[method-assign]


def twice_alive() -> None:
    """A unique key is not looked for. (The index that guards it has to go as well.)"""
    _replace_in_query("insert_tasks_with_options", (") AS live ON true", ") AS live ON false"))


def lapse_while_blocked() -> None:
    """The lease is not renewed for a loop that a handler blocks."""
    LoopGuard._renew = lambda self: None  # type: ignore[method-assign]


def hold_the_loop() -> None:
    """A large body holds the loop for seconds."""
    _after_large_bodies(lambda body: time.sleep(3))


def keep_bodies() -> None:
    """What large bodies were made to is never given back."""
    kept = []
    _after_large_bodies(lambda body: kept.append(body * 30))


def fall_over() -> None:
    """A large body is a fault of the service."""

    def fail(body: bytearray) -> None:
        raise RuntimeError

    _after_large_bodies(fail)


def _after_large_bodies(do: Callable[[bytearray], object]) -> None:
    original = bodies._read_body

    async def read(*args: Any) -> bytearray:
        body = await original(*args)
        if len(body) > _LARGE_BYTES:
            do(body)
        return body

    bodies._read_body = read


_LARGE_BYTES = 100_000


def free_runs() -> None:
    """A handler that fails is run some times more and not charged."""
    original = Executor.after

    def after(self: Executor, error: BaseException, run: Run) -> Outcome | None:
        if run.claim.attempt < _FREE_RUNS:
            return outcome.released(0.0)
        return original(self, error, run)

    Executor.after = after  # type: ignore[method-assign]


_FREE_RUNS = 8


def raw_lines() -> None:
    """The newlines of a value are those of the log."""
    original = lines._json
    lines._json = lambda event: original(event).replace("\\n", "\n")


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        no_fence,
        no_watermark,
        acknowledge_first,
        cancel_anything,
        group_from_the_end,
        rescue_the_living,
        uncharged_rescue,
        claim_early,
        forget_keys,
        uncounted_queue,
        start_beyond_the_limit,
        endless_attempts,
        twice_alive,
        lapse_while_blocked,
        hold_the_loop,
        keep_bodies,
        fall_over,
        free_runs,
        raw_lines,
    )
}
