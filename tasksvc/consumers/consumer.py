"""Reads the doorbell, claims, runs, finishes, acknowledges: in this order, always.

A consumer has two loops. One reads and claims as places become free; the other writes what has
ended and acknowledges it, while other tasks still run. Both work in groups.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from tasksvc.consumers.executor import Executor
from tasksvc.consumers.loop import Loop
from tasksvc.consumers.running import Run, Running, StopReason
from tasksvc.domain.errors import LeaseLost, StreamUnavailable
from tasksvc.domain.outcome import RELEASED, Finish, Outcome
from tasksvc.domain.task import Claim, Lane
from tasksvc.stream.task_stream import Entry, TaskStream
from tasksvc.workers import Take, WorkerService

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 1.0
"""The longest wait for a place or a result; both wake the loop when they come."""

_SMALL_GROUP = 50

_FEW = 8
"""Tasks that start where they are created, at a time. More are cheaper to claim in one piece with
others, and all processes should have a part in them."""

_CLAIMED_CHARACTERS = 2_000_000
"""Of contents in one claim: the answer is in memory several times over."""

_STORE_POLL_SECONDS = 0.25
"""Between two looks into the store, while Redis is away and nothing is due."""

_STREAM_RETRY_SECONDS = 1.0
"""Between two tries of Redis while it is away: each may cost a time-out."""


class Consumer:
    """One reader of the group, under a name of its own, with so many places for runs."""

    def __init__(
        self,
        number: int,
        places: int,
        worker: WorkerService,
        stream: TaskStream,
        executor: Executor,
        running: Running,
    ) -> None:
        self.name = f"consumer-{number}"
        self.pause_seconds = 0.0
        self._number = number
        self._places = places
        self._free = places
        # While one half's results are written, the other half is claimed; but not in small groups.
        self._most_at_once = max(places // 2, min(places, _SMALL_GROUP))
        self._at_once = min(self._most_at_once, _SMALL_GROUP)
        self._worker = worker
        self._stream = stream
        self._executor = executor
        self._running = running
        self._entries: set[str] = set()  # of runs, and not acknowledged yet
        self._reread_after: str | None = "0"
        self._retry_stream_at = 0.0
        self._has_all = False  # the last read has brought all that waited
        self._is_drained = False  # the stream had nothing; while it takes nothing, the store may
        self._untold: dict[str, Run] = {}
        self._telling: asyncio.Task[None] | None = None
        self._finisher = _Finisher(self)
        self.reading = Loop(self)
        self.finishing = Loop(self._finisher)

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and all that ended is written."""
        return self._free == self._places and self._telling is None

    @property
    def _room(self) -> int:
        """How many tasks to take next."""
        return min(self._free, self._at_once)

    async def run_once(self) -> int:
        """Takes as many tasks as there is room for; how many."""
        if self._free == 0:
            self.pause_seconds = _WAIT_SECONDS
            return 0
        self.pause_seconds = 0.0  # a blocked read is the pause
        if self._stream.is_up or time.monotonic() >= self._retry_stream_at:
            if (
                self._is_drained
                and self._stream.refusing
                and (taken := await self._take_from_store())
            ):
                return taken
            self.pause_seconds = 0.0
            try:
                taken = await self._take_from_stream()
            except StreamUnavailable:
                self._retry_stream_at = time.monotonic() + _STREAM_RETRY_SECONDS
            else:
                self._is_drained = not taken
                return taken
        return await self._take_from_store()

    def reserve(self, count: int) -> Take | None:
        """Keeps places for tasks that are about to be created; None if others wait for them, or if
        it has none beside those for what it may be given meanwhile."""
        given = self._stream.waiting.get(self._number)
        is_idle = given is not None or self._has_all
        room = self._free - (self._at_once if given is None else given)
        if self.reading.is_stopping or not is_idle or count > min(_FEW, room):
            return None
        self._free -= count
        return partial(self._take_new, count)

    async def finish(self, ended: list[tuple[Run, Outcome | None]]) -> None:
        """Writes what the runs came to, and frees their places."""
        finishes = [
            Finish(run.claim.id, run.claim.attempt, out, run.claim.kind)
            for run, out in ended
            if out
        ]
        if finishes:
            await self._worker.finish(finishes)
        for run, outcome in ended:
            if outcome is None:
                self._worker.drop(run.claim.id)
            run.is_over = True
        self._free += len(ended)
        self.reading.wake()

    async def acknowledge(self, ended: list[tuple[Run, Outcome | None]]) -> None:
        """Only after `finish`."""
        await self._acknowledge([run.entry for run, _ in ended if run.entry is not None])

    async def _take_from_stream(self) -> int:
        if self._worker.id is None:
            raise LeaseLost
        try:
            return await self._take(await self._read(self._worker.id))
        except BaseException:
            # What it was given stays its own in the group, and is read again.
            self._reread()
            raise

    async def _take(self, deliveries: dict[str, str]) -> int:
        if not deliveries:
            return 0
        claims = await self._claim(list(deliveries))
        for claim in claims:
            self._start(claim, deliveries.pop(claim.id))
        # The rest is final, in other hands, or to go into them.
        if deliveries:
            await self._worker.hand_on(list(deliveries))
        await self._acknowledge(list(deliveries.values()))
        return len(claims)

    def _take_new(self, count: int, claims: Sequence[Claim]) -> None:
        """Takes what was claimed while it was created, into the places that were kept for it."""
        if len(claims) < count:
            self._free += count - len(claims)
            self.reading.wake()
        if claims:
            # Two turns of the loop later the answers to those who created them are written. A
            # handler may hold the loop, or end the process, and they should know by then.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._start_new, claims)

    def _start_new(self, claims: Sequence[Claim]) -> None:
        """The stream is told as well."""
        self._free += len(claims)
        for claim in claims:
            self._untold[claim.id] = self._start(claim, None)
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name=f"{self.name}-tells")
            self._telling.add_done_callback(self._told)

    async def _tell(self) -> None:
        """Gives the runs their entries, which are in this consumer's hand like those of all that
        it runs. Without Redis they go on without; and who has ended needs none any more."""
        await asyncio.sleep(0)  # the handlers first
        while self._untold:
            runs, self._untold = self._untold, {}
            lanes: defaultdict[Lane, list[str]] = defaultdict(list)
            for id, run in runs.items():
                if not run.is_over:
                    lanes[Lane(run.claim.kind, run.claim.priority)].append(id)
            try:
                for lane, ids in lanes.items():
                    if self._worker.id is not None and self._stream.is_open(lane):
                        entries = await self._stream.publish_to(
                            self._worker.id, self._number, ids, lane
                        )
                        await self._keep_entries(entries, runs)
            except StreamUnavailable:
                self._reread()  # it may have been told, and the answer lost
            except BaseException:
                self._reread()
                raise

    def _told(self, telling: asyncio.Task[None]) -> None:
        self._telling = None

    async def _keep_entries(self, entries: Sequence[Entry], runs: Mapping[str, Run]) -> None:
        late = []  # nobody is there any more to acknowledge it
        for entry, id in entries:
            run = runs.get(id or "")
            if run is None:
                self._reread()
            elif run.is_over:
                late.append(entry)
            else:
                run.entry = entry
                self._entries.add(entry)
        await self._acknowledge(late)

    async def _take_from_store(self) -> int:
        self.pause_seconds = _STORE_POLL_SECONDS
        ids = await self._worker.find_due(self._room)
        claims = await self._claim(ids)
        for claim in claims:
            self._start(claim, None)
        return len(claims)

    async def _claim(self, ids: list[str]) -> list[Claim]:
        claims = await self._worker.claim(ids)
        if claims:
            # How large contents are is known when they come. So the next may be twice as many, if
            # that is not too much at a time.
            size = sum(len(claim.content) for claim in claims)
            fitting = max(1, _CLAIMED_CHARACTERS * len(claims) // max(1, size))
            self._at_once = min(self._most_at_once, 2 * self._at_once, fitting)
        return claims

    async def _read(self, worker_id: str) -> dict[str, str]:
        """The ids of tasks, each with its entry in the stream."""
        if self._reread_after is None:
            asked = self._room
            entries = await self._stream.read(worker_id, self._number, asked)
            self._has_all = len(entries) < asked
            if len(entries) > self._room:
                entries = entries[: self._room]
                self._reread()
        else:
            entries = await self._stream.read_again(
                worker_id, self._number, self._room, self._reread_after
            )
            self._reread_after = entries[-1][0] if entries else None
            entries = [entry for entry in entries if entry[0] not in self._entries]
        deliveries: dict[str, str] = {}
        useless = []  # not one of ours, or the second for a task
        for entry, id in entries:
            if id is None or id in deliveries:
                useless.append(entry)
            else:
                deliveries[id] = entry
        await self._acknowledge(useless)
        return deliveries

    def _reread(self) -> None:
        """The next read is of what this consumer was given before."""
        self._has_all = False
        self._reread_after = "0"

    def _start(self, claim: Claim, entry: str | None) -> Run:
        run = Run(claim, entry)
        self._free -= 1
        if entry is not None:
            self._entries.add(entry)
        self._running.add(run)
        run.task = asyncio.create_task(self._executor.execute(run), name=f"task-{claim.id}")
        run.task.add_done_callback(partial(self._end, run))
        return run

    def _end(self, run: Run, task: asyncio.Task[Outcome | None]) -> None:
        self._running.remove(run)
        if task.cancelled() or task.exception():  # before its first step, or closed
            outcome = None if run.stop_reason is StopReason.LOST else RELEASED
        else:
            outcome = task.result()
        self._finisher.ended.append((run, outcome))
        self.finishing.wake()

    async def _acknowledge(self, entries: list[str]) -> None:
        """What Redis does not hear of now is read again later, and found to be done."""
        if not entries:
            return
        self._entries.difference_update(entries)
        is_heard = False
        try:
            if self._stream.is_up:
                await self._stream.acknowledge(entries)
                is_heard = True
        except StreamUnavailable:
            pass
        finally:
            if not is_heard:
                self._reread()


class _Finisher:
    """The step of a consumer's second loop."""

    pause_seconds = _WAIT_SECONDS

    def __init__(self, consumer: Consumer) -> None:
        self.name = consumer.name.replace("consumer", "finisher")
        self.ended: list[tuple[Run, Outcome | None]] = []
        self._consumer = consumer

    async def run_once(self) -> int:
        ended, self.ended = self.ended, []
        if not ended:
            return 0
        try:
            await self._consumer.finish(ended)
        except BaseException:
            # The results are kept and tried again. Nobody else can have the tasks meanwhile.
            self.ended = ended + self.ended
            raise
        await self._consumer.acknowledge(ended)
        return len(ended)
