"""The places of a consumer: how many tasks it may run at a time, in all and of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class Places:
    """So many runs at a time, and of some kinds fewer.

    A consumer claims only what has a free place, so that whatever waits stays `pending`: another
    worker, a higher priority, a pause or a limit can still decide about it.
    """

    def __init__(
        self,
        total: int,
        kinds: Mapping[str, int | None],
        *,
        run_in: str = "loop",
        blocked: Callable[[], int] | None = None,
    ) -> None:
        """`kinds` are those that run here, each with its own bound or None.

        `blocked` counts places that are in use although no run is in them: a thread cannot be
        stopped from outside, and may go on after its run is over.
        """
        self.run_in = run_in
        self.kinds = frozenset(kinds)
        self.total = total
        self._blocked = blocked or _none
        self._in_use = 0
        self._unlimited = {kind: total for kind, most in kinds.items() if most is None}
        self._limited = {kind: most for kind, most in kinds.items() if most is not None}
        self._used = dict.fromkeys(self._limited, 0)

    @property
    def in_use(self) -> int:
        """The places that are taken or reserved."""
        return self._in_use

    @property
    def free(self) -> int:
        return max(0, self.total - self._in_use - self._blocked())

    @property
    def has_limits(self) -> bool:
        """Whether a kind has a bound of its own."""
        return bool(self._limited)

    def is_limited(self, kind: str) -> bool:
        return kind in self._limited

    def rooms(self) -> Mapping[str, int]:
        """The kinds of which a task could start now, and how many of each, if there is a free
        place at all."""
        if not self._limited:
            return self._unlimited
        limited = {
            kind: most - self._used[kind]
            for kind, most in self._limited.items()
            if most > self._used[kind]
        }
        return self._unlimited | limited

    def reserve(self, count: int) -> None:
        """Keeps places for runs that are to begin, of kinds without a bound of their own."""
        self._in_use += count

    def release(self, count: int) -> None:
        """Gives reserved places back."""
        self._in_use -= count

    def take(self, kind: str) -> None:
        """A run begins."""
        self._in_use += 1
        if kind in self._used:
            self._used[kind] += 1

    def give_back(self, kind: str) -> None:
        """A run is over, and its outcome is written."""
        self._in_use -= 1
        if kind in self._used:
            self._used[kind] -= 1


def share_out(
    kinds: Mapping[str, tuple[str, int | None]],
    totals: Mapping[str, int],
    workers: int,
    *,
    blocked: Mapping[str, Callable[[], int]] | None = None,
) -> Sequence[Places]:
    """Makes the places of every consumer of a process.

    `kinds` says of each kind how its handler runs and how many at a time. What runs on the event
    loop has `workers` consumers, each with as many places as `totals` says. Threads and processes
    are bounded for the whole process, so what runs in them has one consumer for each of the two.
    A kind with a bound of its own belongs to one consumer alone, which keeps that bound. `blocked`
    counts, by the same names, places that are in use although no run is in them.
    """
    made = []
    for run_in, total in totals.items():
        own = {kind: most for kind, (where, most) in kinds.items() if where == run_in}
        unlimited = {kind: None for kind, most in own.items() if most is None}
        consumers = workers if run_in == "loop" else 1
        limited: list[dict[str, int | None]] = [{} for _ in range(consumers)]
        for number, kind in enumerate(sorted(own.keys() - unlimited.keys())):
            limited[number % consumers][kind] = own[kind]
        made += [
            Places(total, unlimited | bounded, run_in=run_in, blocked=(blocked or {}).get(run_in))
            for bounded in limited
            if unlimited or bounded
        ]
    return made


def _none() -> int:
    return 0
