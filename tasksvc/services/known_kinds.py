"""Which kinds of tasks there are: those of this process, and those that PostgreSQL remembers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasksvc.domain.errors import TaskServiceError, UnknownKind
from tasksvc.services.group_commit import Group
from tasksvc.store.task_store import TaskStore

_KNOWN_SECONDS = 10.0
"""Then a kind is looked up again: its max_attempts may be another one."""

_UNKNOWN_SECONDS = 1.0

_MOST = 10_000
"""Kinds that are remembered here, known and unknown ones."""

_HTTP = "No process serves the kind http: TASKSVC_HTTP_ALLOW names the hosts that it may reach."


class _Kind(NamedTuple):
    max_attempts: int | None
    until: float


class Kinds:
    """Looks up each kind when it is first asked for, and now and then later. All that is asked for
    at the same moment is one statement."""

    def __init__(
        self, store: TaskStore, own: Mapping[str, int | None], *, max_waiting: int
    ) -> None:
        """`own` are those of this process, each with its max_attempts."""
        self._store = store
        self._own = own
        self._known: dict[str, _Kind] = {}
        self._unknown: dict[str, float] = {}
        self._asking: Group[str, int | None] = Group(
            "kind", self._look_up, max_size=1000, max_waiting=max_waiting
        )

    async def check(self, kind: str) -> None:
        """Raises UnknownKind when no process serves it, or has served it lately; StoreUnavailable
        and Overloaded."""
        if kind in self._own:
            return
        now = time.monotonic()
        if (known := self._known.get(kind)) and now < known.until:
            return
        if now < self._unknown.get(kind, now):
            raise _unknown(kind)
        await self._asking.join(kind)

    def max_attempts(self, kind: str) -> int | None:
        """What the kind was declared with; None if it has none, or was not checked."""
        if kind in self._own:
            return self._own[kind]
        known = self._known.get(kind)
        return None if known is None else known.max_attempts

    async def _look_up(self, kinds: list[str]) -> Sequence[int | TaskServiceError | None]:
        found = await self._store.find_kinds(list(dict.fromkeys(kinds)))
        now = time.monotonic()
        for kind in kinds:
            self._known.pop(kind, None)
            self._unknown.pop(kind, None)
            if kind in found:
                self._known[kind] = _Kind(found[kind], now + _KNOWN_SECONDS)
            else:
                self._unknown[kind] = now + _UNKNOWN_SECONDS
        for cache in (self._known, self._unknown):
            while len(cache) > _MOST:
                del cache[next(iter(cache))]  # the one that was looked up first
        return [found[kind] if kind in found else _unknown(kind) for kind in kinds]


def _unknown(kind: str) -> UnknownKind:
    return UnknownKind(_HTTP if kind == "http" else None)
