"""Lets a task start where it is created, when a consumer of this process waits for work.

Such a task is inserted as held by this worker. It need not go through the stream first, nor be
claimed by a statement of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tasksvc.domain.task import DEFAULT_KIND, Claim, NewTask

Start = Callable[[Sequence[Claim]], None]
"""Starts runs in reserved places, and frees the places that are left. It is called once."""

Reserve = Callable[[int], Start | None]
"""Reserves places for so many tasks; None if the consumer has work, or too few places."""


class DirectStart:
    """Asks the consumers of the event loop, one after the other, for places."""

    def __init__(self, kinds: Collection[str] = (DEFAULT_KIND,)) -> None:
        """`kinds` are those whose handlers may start so: on the event loop, without a bound."""
        self._kinds = frozenset(kinds)
        self._consumers: list[Reserve] = []

    def add(self, reserve: Reserve) -> None:
        """Asks this consumer, too."""
        self._consumers.append(reserve)

    def fits(self, task: NewTask) -> bool:
        """Returns whether the task could start now."""
        return (
            task.is_published
            and not task.options.waits
            and (task.options.kind or DEFAULT_KIND) in self._kinds
        )

    def reserve(self, count: int) -> Start | None:
        """Reserves places for so many tasks; None if no consumer has them."""
        for reserve in self._consumers:
            if (start := reserve(count)) is not None:
                return start
        return None
