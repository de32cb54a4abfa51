"""The moments of a cron expression: five fields, as Debian's cron reads them, in a time zone.

Where the clocks change, an expression with fixed hours and minutes runs once a day: a moment in the
hour that is skipped comes just after it, and a moment in the hour that is repeated comes in the
first of the two alone. An expression whose minutes or hours begin with `*` follows the local clock:
it has no moment in the skipped hour, and each moment twice in the repeated one.
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
    """Raises InvalidCron, also for an expression that matches no date."""
    following(cron, "UTC", _ANY_MOMENT)


@cache
def timezones() -> frozenset[str]:
    """Returns the names of the time zones that a schedule may use."""
    return frozenset(available_timezones() - {"localtime"})  # which differs by the machine


def following(cron: str, timezone: str, moment: datetime) -> datetime:
    """Returns the first moment after the given one, in UTC. Raises InvalidCron."""
    for found in _moments(cron, timezone, moment):
        # In a repeated hour, CronSim may return a moment of the first pass from within the second.
        if (utc := found.astimezone(UTC)) > moment:
            return utc
    raise InvalidCron


def around(cron: str, timezone: str, seen: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Returns the last moment up to now and the first one after now, in UTC. `seen` is an earlier
    moment of the expression."""
    later = now.replace(microsecond=0) + timedelta(seconds=1)
    found = next(_moments(cron, timezone, later, reverse=True), seen).astimezone(UTC)
    last = found if seen < found <= now else seen
    # In a repeated hour, CronSim may go back too far. Search forward from there.
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
