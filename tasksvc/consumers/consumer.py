"""Reads the doorbell, claims, runs, finishes, acknowledges: in this order, always.

A consumer has two loops. One reads and claims as places become free; the other writes what has
ended and acknowledges it, while other tasks still run. Both work in groups.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import structlog

from tasksvc.consumers.executor import Executor
from tasksvc.consumers.places import Places
from tasksvc.domain.errors import LeaseLost, StoreUnavailable, StreamUnavailable, Unavailable
from tasksvc.domain.outcome import Outcome, RunResult
from tasksvc.domain.task import Claim, Lane
from tasksvc.loop import Loop
from tasksvc.runs import Run, RunRegistry
from tasksvc.services.direct_start import Start
from tasksvc.services.worker import WorkerService
from tasksvc.stream.task_stream import Entry, TaskStream

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

_LATE_SECONDS = (5.0, 30.0, 120.0)
"""After a failure the entries of this consumer are read again at once, and so much later, too. The
kernel goes on sending a command for 100 seconds after its connection was given up: when packets
were dropped, Redis may get it long after the failure, and give entries to a consumer that does not
know."""
"""Between two tries of Redis while it is away: each may cost a time-out."""


Ended = list[tuple[Run, Outcome | None]]
"""Runs with what each came to; None for a task that is no longer this worker's."""


class Consumer:
    """One reader of the group, under a name of its own, with places for runs of its kinds."""

    def __init__(
        self,
        number: int,
        places: Places,
        worker: WorkerService,
        stream: TaskStream,
        executor: Executor,
        running: RunRegistry,
    ) -> None:
        self.name = f"consumer-{number}"
        self.pause_seconds = 0.0
        self.places = places
        self._number = number
        # While one half's results are written, the other half is claimed; but not in small groups.
        self._most_at_once = max(places.total // 2, min(places.total, _SMALL_GROUP))
        self._at_once = min(self._most_at_once, _SMALL_GROUP)
        self._worker = worker
        self._stream = stream
        self._executor = executor
        self._running = running
        self._entries: set[str] = set()  # of runs, and not acknowledged yet
        self._reread_after: str | None = "0"
        self._late_rereads: list[float] = []  # when they are due, the first one last
        self._retry_stream_at = 0.0
        self._has_all = False  # the last read has brought all that waited
        self._is_drained = False  # the stream had nothing; while it takes nothing, the store may
        self._untold: dict[str, Run] = {}
        self._telling: asyncio.Task[None] | None = None
        self._asked_kinds: Collection[str] = ()  # of the read that is under way
        self._missed_kinds: set[str] = set()  # of which a place became free during that read
        self._taking_missed: asyncio.Task[None] | None = None
        self._finisher = _Finisher(self)
        self.reading = Loop(self)
        self.finishing = Loop(self._finisher)

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and all that ended is written."""
        return not (self.places.in_use or self._telling or self._taking_missed)

    @property
    def _room(self) -> int:
        """How many tasks to take next."""
        return min(self.places.free, self._at_once)

    @property
    def _spare(self) -> int:
        """Returns the free places, less those for the tasks that the pending read may bring."""
        given = self._stream.waiting.get(self._number)
        return self.places.free - (self._at_once if given is None else given)

    async def run_once(self) -> int:
        """Takes as many tasks as there is room for; how many."""
        if self._taking_missed is not None:
            await asyncio.wait([self._taking_missed])
        if self._room == 0 or not self.places.rooms():
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

    def reserve(self, count: int) -> Start | None:
        """Keeps places for tasks that are about to be created; None if others wait for them, or if
        it has none to spare."""
        is_idle = self._number in self._stream.waiting or self._has_all
        if self.reading.is_stopping or not is_idle or count > min(_FEW, self._spare):
            return None
        self.places.reserve(count)
        return partial(self._take_new, count)

    async def finish(self, ended: Ended) -> Ended:
        """Writes what the runs came to, and frees their places. Returns those that could not be
        written now."""
        finishes = [
            RunResult(run.claim.id, run.claim.attempt, out, run.claim.kind)
            for run, out in ended
            if out
        ]
        left = await self._worker.finish(finishes) if finishes else ()
        for run, outcome in ended:
            if run.claim.id in left:
                continue
            if outcome is None:
                self._worker.drop(run.claim.id)
            run.is_over = True
            self.places.give_back(run.claim.kind)
        self.wake()
        return [each for each in ended if each[0].claim.id in left]

    def wake(self) -> None:
        """A place may be free."""
        self.reading.wake()
        if self.places.has_limits and self._number in self._stream.waiting:
            missed = self.places.rooms().keys() - set(self._asked_kinds)
            if missed and self._taking_missed is None and not self.reading.is_stopping:
                self._missed_kinds = missed
                self._taking_missed = asyncio.create_task(
                    self._take_missed(), name=f"{self.name}-takes"
                )
                self._taking_missed.add_done_callback(self._took_missed)

    async def acknowledge(self, ended: Ended) -> None:
        """Only after `finish`."""
        await self._acknowledge(
            [run.entry for run, _ in ended if run.is_over and run.entry is not None]
        )

    async def _take_from_stream(self) -> int:
        if self._worker.id is None:
            raise LeaseLost
        try:
            return await self._take(await self._read(self._worker.id))
        except BaseException:
            # What it was given stays its own in the group, and is read again.
            self._reread()
            raise

    async def _take_missed(self) -> None:
        """Takes tasks of kinds that had no free place when the read that waits was sent."""
        while self._missed_kinds and self._worker.id is not None:
            kinds, self._missed_kinds = self._missed_kinds, set()
            rooms = {kind: room for kind, room in self.places.rooms().items() if kind in kinds}
            most = min(self._spare, sum(rooms.values()))
            if most <= 0:
                return
            try:
                entries = await self._stream.read_now(self._worker.id, self._number, most, rooms)
                await self._take(await self._fitting(entries))
            except Unavailable:
                self._reread()
            except BaseException:
                self._reread()
                raise

    def _took_missed(self, taking: asyncio.Task[None]) -> None:
        self._taking_missed = None

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
            self.places.release(count - len(claims))
            self.wake()
        if claims:
            self._start_new(claims)

    def _start_new(self, claims: Sequence[Claim]) -> None:
        """The stream is told as well."""
        self.places.release(len(claims))
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
        late = []  # the run that would acknowledge it is over
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
        ids = await self._worker.find_due(self._room, self.places.rooms())
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
        is_late = self._late_rereads and time.monotonic() >= self._late_rereads[-1]
        if is_late and self._telling is None:
            self._late_rereads.pop()
            self._reread_after = "0"
        if self._reread_after is None:
            asked = self._room
            rooms = self.places.rooms()
            self._asked_kinds = rooms.keys()
            entries = await self._stream.read(worker_id, self._number, asked, rooms)
            self._has_all = len(entries) < asked
        else:
            entries = await self._stream.read_again(
                worker_id, self._number, self._room, self._reread_after, self.places.kinds
            )
            self._reread_after = entries[-1][0] if entries else None
            entries = [entry for entry in entries if entry[0] not in self._entries]
        return await self._fitting(entries)

    async def _fitting(self, entries: Sequence[Entry]) -> dict[str, str]:
        """The ids of tasks that have a free place, each with its entry; the others are put back."""
        room = self._room
        rooms = dict(self.places.rooms()) if self.places.has_limits else None
        deliveries: dict[str, str] = {}
        surplus: dict[str, str] = {}
        useless = []  # not one of ours, or the second for a task
        for entry, id in entries:
            if id is None or id in deliveries:
                useless.append(entry)
            elif len(deliveries) < room and (rooms is None or self._has_room(rooms, entry)):
                deliveries[id] = entry
            else:
                surplus[id] = entry
        if surplus:
            await self._worker.put_back(list(surplus))
        await self._acknowledge([*useless, *surplus.values()])
        return deliveries

    def _has_room(self, rooms: dict[str, int], entry: str) -> bool:
        """Whether the kind of the entry has a free place, which is then taken out of the rooms."""
        kind = self._stream.kind_of(entry)
        room = rooms.get(kind, 0)
        rooms[kind] = room - 1
        return room > 0

    def _reread(self) -> None:
        """The next read is of what this consumer was given before."""
        self._has_all = False
        self._reread_after = "0"
        now = time.monotonic()
        self._late_rereads = [now + seconds for seconds in reversed(_LATE_SECONDS)]

    def _start(self, claim: Claim, entry: str | None) -> Run:
        run = Run(claim, entry)
        self.places.take(claim.kind)
        if entry is not None:
            self._entries.add(entry)
        self._running.add(run)
        run.task = asyncio.create_task(self._executor.execute(run), name=f"task-{claim.id}")
        run.task.add_done_callback(partial(self._end, run))
        return run

    def _end(self, run: Run, task: asyncio.Task[Outcome | None]) -> None:
        self._running.remove(run)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        # The executor raises nothing: it was canceled before its first step, or closed.
        outcome = task.result() if error is None else self._executor.after(error, run)
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
        self.ended: Ended = []
        self._consumer = consumer

    async def run_once(self) -> int:
        ended, self.ended = self.ended, []
        if not ended:
            return 0
        try:
            left = await self._consumer.finish(ended)
        except BaseException:
            # The results are kept and tried again. No other worker can have the tasks meanwhile.
            self.ended = ended + self.ended
            raise
        await self._consumer.acknowledge(ended)
        if left:
            self.ended = left + self.ended
            raise StoreUnavailable
        return len(ended)
