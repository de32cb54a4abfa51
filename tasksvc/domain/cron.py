"""When a cron expression comes: five fields, as Debian's cron reads them, in the time of a zone.

Where the clocks change, an expression with fixed hours and minutes keeps to the day: what would be
in the hour that is skipped comes just after it, and what would be in the hour that comes twice
comes in the first alone. One whose minutes or hours begin with `*` goes by the clock on the wall:
nothing in the hour that is skipped, and everything twice in the other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from tasksvc.domain.errors import InvalidCron

_FIELDS = 5
"""A sixth would be seconds, for which a schedule is the wrong tool."""

_ANY_MOMENT = datetime(2000, 1, 1, tzinfo=UTC)


def check(cron: str) -> None:
    """Raises InvalidCron, also for what never comes."""
    following(cron, "UTC", _ANY_MOMENT)


@cache
def timezones() -> frozenset[str]:
    """The names that a schedule may use."""
    return frozenset(available_timezones() - {"localtime"})  # which differs by the machine


def following(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first one after the moment, in UTC. Raises InvalidCron."""
    for found in _moments(cron, timezone, moment):
        # In the hour that comes twice, CronSim may name the first of them from within the second.
        if (utc := found.astimezone(UTC)) > moment:
            return utc
    raise InvalidCron


def around(cron: str, timezone: str, seen: datetime, now: datetime) -> tuple[datetime, datetime]:
    """The last one up to now, from `seen` on, which is one; and the first after now. In UTC."""
    later = now.replace(microsecond=0) + timedelta(seconds=1)
    found = next(_moments(cron, timezone, later, reverse=True), seen).astimezone(UTC)
    last = found if seen < found <= now else seen
    # In the hour that comes twice, CronSim may go back past the first of them: from here forward.
    while (after := following(cron, timezone, last)) <= now:
        last = after
    return last, after


def _moments(cron: str, timezone: str, start: datetime, *, reverse: bool = False) -> CronSim:
    if len(cron.split()) != _FIELDS:
        raise InvalidCron
    try:
        return CronSim(cron, start.astimezone(ZoneInfo(timezone)), reverse)
    except CronSimError:
        raise InvalidCron from None
