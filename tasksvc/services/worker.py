"""This process as a worker: its lease, and the tasks that it holds under it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import structlog
import uuid_utils

from tasksvc.domain import outcome
from tasksvc.domain.attempt import AttemptOutcome
from tasksvc.domain.errors import (
    DataRejected,
    LeaseLost,
    StoreUnavailable,
    StreamUnavailable,
    TaskServiceError,
    Unavailable,
)
from tasksvc.domain.outcome import RunResult
from tasksvc.domain.task import (
    CanceledTask,
    Claim,
    Hold,
    NewTask,
    Progress,
    Status,
)
from tasksvc.metrics import Metrics
from tasksvc.services.direct_start import DirectStart
from tasksvc.services.group_commit import Group
from tasksvc.services.publisher import Publisher
from tasksvc.store.task_store import TaskStore
from tasksvc.stream.task_stream import TaskStream

log = structlog.get_logger(__name__)

_AFTER_FAILURE = {
    Status.PENDING: AttemptOutcome.RETRIED,
    Status.FAILED: AttemptOutcome.FAILED,
}
"""What a failed run is called, by what became of its task."""


StopRuns = Callable[[Sequence[str]], object]
"""Stops the runs of tasks, by their ids, that this worker has lost: canceled, or rescued."""


@dataclass(slots=True)
class Taking:
    """What this worker takes of tasks while they are inserted."""

    hold: Hold | None
    """None: nothing; they go their way through the stream."""
    claims: Sequence[Claim] = ()
    """The claims that came of it. The caller that inserts sets them."""
    start: Callable[[], None] = lambda: None
    """Starts what was claimed. To be called once the callers have their answers."""


class WorkerService:
    """register, renew_lease, leave for the lease; claim, or take while they are created, report and
    finish for the tasks under it.

    Every method raises Unavailable when PostgreSQL is away, and what its docstring names.
    """

    def __init__(
        self,
        store: TaskStore,
        stream: TaskStream,
        publisher: Publisher,
        metrics: Metrics,
        kinds: Mapping[str, int | None],
        *,
        stop_runs: StopRuns,
        direct_start: DirectStart,
        lease_seconds: float,
        group_size: int,
        max_waiting: int,
    ) -> None:
        """`kinds` are those that this process serves."""
        self._stop_runs = stop_runs
        self._direct_start = direct_start
        self._store = store
        self._stream = stream
        self._publisher = publisher
        self._metrics = metrics
        self._kinds = kinds
        self._attempts_failed = {
            (kind, status): metrics.attempts_failed(kind, then)
            for kind in kinds
            for status, then in _AFTER_FAILURE.items()
        }
        self._lease_seconds = lease_seconds

        self.id: str | None = None
        """The worker's id while this process holds a lease."""
        self._held: dict[str, Claim | None] = {}  # None while the claim is under way
        self._epoch = 0
        self._asked_epoch = 0
        self._doubtful: set[str] = set()  # what claims may have taken, or may still take, unnoticed
        self._must_settle = False
        self._steady_since = -inf  # no renewal has failed yet

        self._background: set[asyncio.Task[None]] = set()

        bounds: dict[str, Any] = {"max_size": group_size, "max_waiting": max_waiting}
        self._claims: Group[str, Claim | None] = Group(
            "claim", self._claim, observe=metrics.group_size("claim"), **bounds
        )
        self._progresses: Group[Progress, None] = Group(
            "progress", self._keep_progress, observe=metrics.group_size("progress"), **bounds
        )
        self._finishes: Group[RunResult, bool] = Group(
            "finish", self._finish, observe=metrics.group_size("finish"), **bounds
        )

    # The lease.

    async def register(self) -> None:
        """Makes this process a worker, with a lease."""
        id = str(uuid_utils.uuid7())
        name = f"{socket.gethostname()}:{os.getpid()}"
        await self._store.register_worker(id, name, self._lease_seconds, self._kinds)
        self.id = id
        self._epoch = self._asked_epoch = 0
        self._doubtful.clear()  # what another worker took is taken back by the rescuer
        log.info("Worker registered", action="registered", worker_id=id)

    async def renew_lease(self) -> int:
        """How many of the held tasks turned out to be no longer this worker's.

        Raises LeaseLost when the worker was declared dead: all of them are lost then.
        """
        held = self.held
        if self.id is None:
            raise LeaseLost
        try:
            # A connection that hangs must not cost the lease: there is time for another try.
            async with asyncio.timeout(self._lease_seconds / 3):
                is_renewed, lost = await self._store.renew_lease(self.id, held, self._lease_seconds)
        except TimeoutError:
            self._steady_since = time.monotonic()
            raise StoreUnavailable from None
        except Unavailable:
            self._steady_since = time.monotonic()
            raise
        if not is_renewed:
            self._stop_runs(list(held))
            raise LeaseLost
        count = self._stop_lost(lost, held)
        if self._doubtful:
            self._must_settle = True
            self._spawn(self._settle())
        return count

    @property
    def steady_seconds(self) -> float:
        """How long every renewal of the lease has come through; without end in a process that has
        no lease to renew."""
        return inf if self.id is None else time.monotonic() - self._steady_since

    async def stop_lost(self, ids: Sequence[str]) -> int:
        """Stops those of the tasks that run here and that, as PostgreSQL says, are no longer this
        worker's; how many."""
        held = self.held
        held = {id: held[id] for id in ids if id in held}
        if self.id is None or not held:
            return 0
        return self._stop_lost(await self._store.find_lost_tasks(self.id, held), held)

    async def leave(self) -> None:
        """Releases all tasks that this worker still holds, without a charge, and ends its lease."""
        id, self.id = self.id, None
        if id is None:
            return
        released = await self._store.release_tasks(id)
        # A claim may be under way whose caller is gone. This waits for it, and none comes later.
        await self._store.retire_worker(id)
        released += await self._store.release_tasks(id)
        self._held.clear()
        if released:
            log.info("Released tasks at shutdown", action="released", tasks=len(released))
            self._metrics.tasks_released.add(len(released))
        await self._store.forget_workers([id])
        await self._publisher.take_back(id)
        with suppress(StreamUnavailable):
            await self._publisher.publish_due()

    # The tasks.

    @property
    def held(self) -> dict[str, int]:
        """The tasks that this process holds, with their attempts."""
        return {id: claim.attempt for id, claim in self._held.items() if claim is not None}

    async def find_due(self, limit: int, rooms: Mapping[str, int]) -> list[str]:
        """Tasks to claim while there is no stream: at most `limit`, of the kinds that have room,
        and of each at most that many."""
        rooms = dict(rooms)
        ids = []
        for id, kind in await self._store.find_due_tasks(limit, rooms):
            if rooms[kind] > 0:
                rooms[kind] -= 1
                ids.append(id)
        return ids

    async def claim(self, ids: Sequence[str]) -> list[Claim]:
        """Returns the claims of the tasks that this worker holds from now on. The others are
        final, held elsewhere, not due, or held here already."""
        wanted = [id for id in dict.fromkeys(ids) if id not in self._held]
        if not wanted:
            return []
        self._held.update(dict.fromkeys(wanted))
        claims: list[Claim] = []
        try:
            found = await self._claims.join_all(wanted)
            claims = [claim for claim in found if isinstance(claim, Claim)]
            await self._fail_unreadable(
                id
                for id, claim in zip(wanted, found, strict=True)
                if isinstance(claim, TaskServiceError)
            )
        except BaseException:
            self._doubtful.update(wanted)
            raise
        finally:
            for id in wanted:
                self._held.pop(id, None)
            self._keep(claims)
        return claims

    async def _fail_unreadable(self, ids: Iterable[str]) -> None:
        """Those that PostgreSQL can't read. They would be claimed again and again."""
        ids = list(ids)
        if ids and self.id is not None:
            log.error("Unreadable row", action="unreadable", task_ids=ids)
            await self._store.fail_unreadable_tasks(self.id, ids)

    @contextmanager
    def taking(self, tasks: Sequence[NewTask]) -> Iterator[Taking]:
        """While tasks are inserted: if a consumer here waits for any, they need not go through the
        stream first, nor be claimed by a statement of their own."""
        worker_id = self.id
        fits = self._direct_start.fits
        ids = [] if worker_id is None else [task.id for task in tasks if fits(task)]
        start = self._direct_start.reserve(len(ids)) if ids else None
        if start is None or worker_id is None:
            yield Taking(None)
            return
        taking = Taking(Hold(worker_id, frozenset(ids), self._epoch))
        claims: Sequence[Claim] = ()
        run_again = self._store.claims_run_again
        self._held.update(dict.fromkeys(ids))
        try:
            yield taking
            # Otherwise the rescuer takes these tasks back with the rest of the former worker's.
            claims = taking.claims if self.id == worker_id else ()
        except DataRejected:
            raise  # nothing took effect
        except BaseException:
            self._doubtful.update(ids)
            raise
        finally:
            if self._store.claims_run_again > run_again:
                self._doubtful.update(ids)
            for id in ids:
                self._held.pop(id, None)
            self._keep(claims)
            if claims:
                taking.start = partial(start, claims)
            else:
                start(())

    async def hand_on(self, ids: Sequence[str]) -> None:
        """Has tasks published again later that this process can't start: of kinds
        that it does not serve, or of queues that let none start."""
        if self.id is not None and await self._store.unpublish_refused_tasks(self.id, ids):
            self._publisher.wake_relay_in(0.0)  # a queue may have got room since

    async def put_back(self, ids: Sequence[str]) -> None:
        """Lets the relay publish tasks again that this process was given and has no place for."""
        await self._store.unpublish_tasks(ids)
        self._publisher.wake_relay_in(0.0)

    async def report(self, claim: Claim, fraction: float, message: str) -> None:
        """Keeps how far a run has come, if it is still the current one. Raises nothing when
        PostgreSQL is away: a run must not fail for what is only said about it."""
        progress = Progress.of(claim, fraction, message)
        try:
            await self._progresses.join(progress)
        except Unavailable:
            pass
        except DataRejected:
            raise ValueError("The database does not take this progress.") from None

    async def finish(self, finishes: Sequence[RunResult]) -> set[str]:
        """Writes what the attempts came to, where they are still the current ones.

        What PostgreSQL refuses of one fails that task, and no other. Returns the ids of tasks for
        which even that could not be written now.
        """
        refused: list[RunResult] = []
        results = await self._finishes.join_all(finishes)
        for finish, result in zip(finishes, results, strict=True):
            if isinstance(result, TaskServiceError):
                refused.append(finish)
            else:
                self._finished(finish, is_written=result)
        return await self._fail_refused(refused) if refused else set()

    def drop(self, id: str) -> None:
        """This process no longer holds the task."""
        claim = self._held.pop(id, None)
        if claim is not None and claim.is_limited:
            self._publisher.wake_relay_in(0.0)  # there may be room in the queue now

    def stop_handlers(self, canceled: Sequence[CanceledTask]) -> None:
        """Stops what runs of the canceled tasks, here and elsewhere."""
        running = [each for each in canceled if each.worker_id is not None]
        self._stop_runs([each.task.id for each in running if each.worker_id == self.id])
        if any(each.task.queue for each in running):
            self._publisher.wake_relay_in(0.0)
        elsewhere = [each.task.id for each in running if each.worker_id != self.id]
        if elsewhere:
            self._spawn(self._publish_canceled(elsewhere))

    async def flush(self) -> None:
        """Waits until every group is written, and every cancellation is published."""
        for group in (self._claims, self._progresses, self._finishes):
            await group.drain()
        while self._background:
            await asyncio.wait(self._background)

    async def _fail_refused(self, refused: Sequence[RunResult]) -> set[str]:
        """Fails tasks whose outcome PostgreSQL refuses: they would come to the same again. Returns
        the ids of those for which this could not be written."""
        failed = [each._replace(outcome=outcome.refused(each.attempt)) for each in refused]
        try:
            results = await self._finishes.join_all(failed)
        except Unavailable:
            return {each.id for each in failed}
        left = set()
        for finish, result in zip(failed, results, strict=True):
            if isinstance(result, TaskServiceError):
                left.add(finish.id)
                continue
            log.error(
                "The database refuses an outcome",
                action="outcome_refused",
                task_id=finish.id,
                attempt=finish.attempt,
            )
            self._finished(finish, is_written=result)
        return left

    def _finished(self, finish: RunResult, *, is_written: bool) -> None:
        self.drop(finish.id)
        self._count(finish, is_written)
        if finish.outcome.status is Status.PENDING:
            self._publisher.wake_relay_in(finish.outcome.delay_seconds)

    # The groups: each takes many and gives one result for each.

    async def _claim(self, ids: list[str]) -> list[Claim | None]:
        worker_id = self.id
        if worker_id is None:
            raise LeaseLost
        if self._must_settle:
            # Here no other claim of this process is under way.
            self._must_settle = False
            await self._hand_back_doubtful(worker_id)
        if not ids:
            return []
        run_again = self._store.claims_run_again
        claims = await self._store.claim_tasks(worker_id, ids, self._epoch)
        claimed = {claim.id: claim for claim in claims}
        if self._store.claims_run_again > run_again:
            self._doubtful.update(ids)
        if not claimed:  # all of them taken elsewhere, or this worker was declared dead?
            is_renewed, _ = await self._store.renew_lease(worker_id, {}, self._lease_seconds)
            if not is_renewed:
                raise LeaseLost
        return [claimed.get(id) for id in ids]

    async def _keep_progress(self, progresses: list[Progress]) -> list[None]:
        last = {each.id: each for each in progresses}
        await self._store.keep_progress(list(last.values()))
        return [None] * len(progresses)

    async def _finish(self, finishes: list[RunResult]) -> list[bool]:
        written = set(await self._store.finish_tasks(finishes))
        rest = [finish for finish in finishes if finish.id not in written]
        if rest:  # fenced off, or the answer to a first try was lost
            written.update(await self._store.find_finished_tasks(rest))
        return [finish.id in written for finish in finishes]

    # Below.

    def _stop_lost(self, lost: Sequence[str], held: Mapping[str, int]) -> int:
        # What was finished in the meantime is not lost.
        still_held = self.held
        lost = [id for id in lost if still_held.get(id) == held[id]]
        self._stop_runs(lost)
        return len(lost)

    def _keep(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            self._held[claim.id] = claim
            self._metrics.task_wait_seconds[claim.priority](max(0.0, claim.waited_seconds))

    async def _hand_back_doubtful(self, worker_id: str) -> None:
        """Refuses claims that may still come, and hands back what such claims have taken unnoticed.

        Raises LeaseLost when the worker was declared dead.
        """
        doubtful = frozenset(self._doubtful)
        self._asked_epoch += 1
        epoch = await self._store.begin_epoch(worker_id, self._asked_epoch)
        if epoch is None:
            raise LeaseLost
        self._epoch = epoch
        unknown = doubtful - self._held.keys()
        if released := await self._store.release_tasks(worker_id, unknown):
            self._metrics.tasks_released.add(len(released))
            self._publisher.wake_relay_in(0.0)
            log.warning("Released orphaned claims", action="settled", tasks=len(released))
        self._doubtful -= doubtful

    async def _settle(self) -> None:
        """Has the claims' group hand back what the database says that this worker holds, and it
        does not know of: the work of claims whose answers were lost."""
        with suppress(Unavailable):
            await self._claims.join_all(())

    def _count(self, finish: RunResult, is_written: bool) -> None:
        if not is_written:
            self._metrics.results_fenced.add()
            log.info(
                "Dropped a late result",
                action="fenced",
                task_id=finish.id,
                attempt=finish.attempt,
            )
        elif finish.outcome.status is Status.COMPLETED:
            self._metrics.task_processing_successes.add()
        elif not finish.outcome.is_charged:
            self._metrics.tasks_released.add()
        else:
            self._metrics.task_processing_fails.add()
            self._attempts_failed[finish.kind, finish.outcome.status].add()

    async def _publish_canceled(self, ids: list[str]) -> None:
        try:
            await self._stream.publish_canceled(ids)
        except StreamUnavailable:
            log.debug(
                "Could not broadcast a cancellation", action="cancel_not_published", tasks=len(ids)
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
