"""Which tasks pass a filter: newest first, by the index that finds them soonest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from tasksvc.domain.task import DEFAULT_KIND, LIVE, Filter, Status
from tasksvc.store.task_store import Path, TaskStore

_FIRST_WINDOW = 1000
"""Tasks that one statement looks at …"""

_LAST_WINDOW = 16_000
"""… and when it has to look at more of them."""

_SECONDS = 2.0
"""Then a page is given back as far as it is."""

_SKEW_SECONDS = 300.0
"""How far the clock that makes an id may be from PostgreSQL's."""

_FIRST_ID = str(UUID(int=0))
_LAST_ID = str(UUID(int=(1 << 128) - 1))


@dataclass(slots=True)
class _Look:
    """How far the tasks were looked at along one path."""

    path: Path
    before: str
    ids: list[str] = field(default_factory=list)
    """Those that pass the filter; only what is newer than `before` was looked at."""
    is_done: bool = False
    """All were looked at."""


class Search:
    """Goes several paths in turns, each further every time: the shortest one decides, and nothing
    has to know before which one that is."""

    def __init__(self, store: TaskStore, session: str) -> None:
        self._store = store
        self._session = session

    async def find(
        self, filter: Filter, before: str | None, limit: int
    ) -> tuple[list[str], str | None]:
        """At most `limit` ids, newest first, and what the next page begins before; None after the
        last. They are fewer before the last only when the time is over.

        Raises StoreUnavailable.
        """
        until = time.monotonic() + _SECONDS
        before = min(before or _LAST_ID, _ceiling(filter.created_before))
        floor = _floor(filter.created_after)
        looks = [_Look(path, before) for path in paths(filter)]
        window = limit + 1 if filter == Filter() else _FIRST_WINDOW
        while True:
            for look in looks:
                await self._go_on(look, filter, floor, window, limit + 1)
                if len(look.ids) > limit:
                    return look.ids[:limit], look.ids[limit - 1]
                if look.is_done:
                    return look.ids, None
            if time.monotonic() >= until:
                furthest = min(looks, key=lambda look: look.before)
                return furthest.ids, furthest.before
            window = min(4 * window, _LAST_WINDOW)

    async def _go_on(
        self, look: _Look, filter: Filter, floor: str, window: int, limit: int
    ) -> None:
        found = await self._store.find_tasks(
            look.path, filter, look.before, floor, window, limit - len(look.ids), self._session
        )
        look.is_done = found.is_last
        if look.path.is_ordered:
            look.ids += found.ids
            look.before = found.last or look.before
        elif found.is_last:
            look.ids = list(found.ids)


def paths(filter: Filter) -> list[Path]:
    """Those that meet every task that passes the filter; what is likely to be short comes first."""
    paths = []
    if filter.statuses == (Status.FAILED,):
        paths.append(Path.FAILED)
    if filter.statuses == (Status.CANCELED,):
        paths.append(Path.CANCELED)
    if filter.statuses == (Status.PROCESSING,):
        paths.append(Path.PROCESSING)
    if filter.queue is not None:
        paths.append(Path.QUEUE)
    if filter.kind not in (None, DEFAULT_KIND):
        paths.append(Path.KIND)
    if filter.statuses and set(filter.statuses) <= set(LIVE):
        paths.append(Path.LIVE)
    return [*paths, Path.ALL]


def _floor(created_after: datetime | None) -> str:
    """The first id that a task could have which was created after that moment."""
    if created_after is None:
        return _FIRST_ID
    return _id_at(created_after.timestamp() - _SKEW_SECONDS)


def _ceiling(created_before: datetime | None) -> str:
    """An id that no task has which was created before that moment."""
    if created_before is None:
        return _LAST_ID
    return _id_at(created_before.timestamp() + _SKEW_SECONDS)


def _id_at(timestamp: float) -> str:
    """The first id of that moment."""
    return str(UUID(int=max(0, int(timestamp * 1000)) << 80))
