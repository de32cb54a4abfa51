"""When a cron expression comes: what it means, and what becomes of it where the clocks change."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from tasksvc.domain import cron
from tasksvc.domain.errors import InvalidCron

SECOND = timedelta(seconds=1)


def moments(expression: str, timezone: str, start: str, end: str) -> list[str]:
    """All from the start up to the end, in UTC."""
    moment, last = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    found = []
    while (moment := cron.following(expression, timezone, moment)) <= last:
        found.append(moment.strftime("%d %H:%M"))
    return found


def test_following_is_later_than_the_moment() -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)

    assert cron.following("*/5 * * * *", "UTC", noon) == noon + timedelta(minutes=5)
    assert cron.following("*/5 * * * *", "UTC", noon - SECOND) == noon
    assert cron.following("0 14 * * *", "Europe/Berlin", noon - SECOND) == noon


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 0 1 1 *", "2027-01-01 00:00"),
        ("30 6 * * MON-FRI", "2026-07-02 06:30"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("0 0 L * *", "2026-07-31 00:00"),
        ("0 0 13 * 5", "2026-07-03 00:00"),  # one or the other
        ("0 0 */13 * 5", "2026-08-14 00:00"),  # both: one begins with a star
        ("0 0 * * 7", "2026-07-05 00:00"),
    ],
)
def test_expressions(expression: str, first: str) -> None:
    found = cron.following(expression, "UTC", datetime(2026, 7, 1, 12, tzinfo=UTC))

    assert found.strftime("%Y-%m-%d %H:%M") == first


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "*",
        "* * * *",
        "0 * * * * *",  # with seconds
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "a * * * *",
        "@daily",
        "² * * * *",
        "* * * * * \n;",
        "0 0 30 2 *",
        "0 0 */31 * 1#5",  # the first that is the fifth Monday
    ],
)
def test_what_is_no_expression_or_never_comes(expression: str) -> None:
    with pytest.raises(InvalidCron):
        cron.check(expression)


def test_fixed_time_in_the_hour_that_is_skipped_comes_just_after_it() -> None:
    """2026-03-29 in Berlin: 01:59:59 (+01:00) is followed by 03:00 (+02:00), at 01:00 UTC."""
    days = "2026-03-28", "2026-03-31"

    assert moments("30 2 * * *", "Europe/Berlin", *days) == ["28 01:30", "29 01:00", "30 00:30"]
    assert moments("0,30 2 29 * *", "Europe/Berlin", *days) == ["29 01:00"], "once for both"


def test_fixed_time_in_the_hour_that_comes_twice_comes_once() -> None:
    """2026-10-25 in Berlin: 02:59:59 (+02:00) is followed by 02:00 (+01:00), at 01:00 UTC."""
    days = "2026-10-24", "2026-10-27"

    assert moments("30 2 * * *", "Europe/Berlin", *days) == ["24 00:30", "25 00:30", "26 01:30"]


@pytest.mark.parametrize("minute", [0, 15, 30, 45])
def test_fixed_time_does_not_come_again_when_asked_from_within_the_second_hour(
    minute: int,
) -> None:
    within = datetime(2026, 10, 25, 1, minute, tzinfo=UTC)
    for expression in ("0 2 * * *", "30 2 * * *", "45 2 * * *"):
        following = cron.following(expression, "Europe/Berlin", within)
        assert following.day == 26
        last, after = cron.around(
            expression, "Europe/Berlin", datetime(2026, 10, 20, tzinfo=UTC), within
        )
        assert (last.day, last.hour, after) == (25, 0, following)


def test_stars_go_by_the_clock_on_the_wall() -> None:
    spring = moments("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T02:00")
    autumn = moments("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T02:00")

    assert spring == ["29 00:30", "29 01:00", "29 01:30", "29 02:00"]
    assert autumn == ["25 00:30", "25 01:00", "25 01:30", "25 02:00"]


def test_every_hour_comes_in_both_of_the_hours_that_are_one() -> None:
    found = moments("15 * * * *", "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T02:00")

    assert found == ["25 00:15", "25 01:15"]


def test_around_is_the_last_one_and_the_first_after_it() -> None:
    seen = datetime(2026, 7, 1, tzinfo=UTC)
    now = datetime(2026, 7, 9, 12, 7, 30, 5, tzinfo=UTC)

    last, after = cron.around("*/5 * * * *", "UTC", seen, now)

    assert last == datetime(2026, 7, 9, 12, 5, tzinfo=UTC)
    assert after == datetime(2026, 7, 9, 12, 10, tzinfo=UTC)
    assert cron.around("*/5 * * * *", "UTC", seen, after)[0] == after
    assert cron.around("0 0 1 7 *", "UTC", seen, now)[0] == seen


@pytest.mark.parametrize(
    "timezone",
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"],
)
def test_around_is_what_one_finds_step_by_step(timezone: str) -> None:
    """Also about the changes of the clocks, of an hour, of half an hour, and at midnight."""
    dice = random.Random(timezone)
    for _ in range(60):
        hour = dice.choice(["0", "1", "2", "3", "0-3", "*", "*/2", "22-23"])
        expression = f"{dice.choice(['0', '30', '15,45', '*/20', '*'])} {hour} * * *"
        day = dice.choice([datetime(2026, 3, 7), datetime(2026, 3, 28), datetime(2026, 4, 4)])
        day = dice.choice(
            [day, datetime(2026, 9, 5), datetime(2026, 10, 3), datetime(2026, 10, 24)]
        )
        start = day.replace(tzinfo=UTC)
        seen = cron.following(expression, timezone, start)
        now = seen + timedelta(seconds=dice.randrange(48 * 3600), microseconds=dice.choice([0, 7]))

        last = seen
        while (after := cron.following(expression, timezone, last)) <= now:
            last = after

        assert cron.around(expression, timezone, seen, now) == (last, after), (
            expression,
            seen,
            now,
        )


def test_time_zones() -> None:
    assert {"UTC", "Europe/Berlin", "America/New_York", "Etc/GMT+5"} <= cron.timezones()
    assert not {"", "localtime", "Europe", "posixrules", "right/UTC"} & cron.timezones()
