"""What comes in, drawn at random: the quick reader and the schema agree about every document."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasksvc.domain.seconds import MAX_SECONDS
from tasksvc.domain.task import Filter, Options, Priority, Status
from tasksvc.web.problems import Problem
from tasksvc.web.schemas.batches import load_tasks_create
from tasksvc.web.schemas.cursors import Cursors
from tasksvc.web.schemas.documents import load
from tasksvc.web.schemas.moments import read_moment, shown_moment
from tasksvc.web.schemas.tasks import CreateRequest, TaskCreate, quick_order

pytestmark = pytest.mark.slow

drawn = settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

SCHEMA = TaskCreate()

texts = st.text(max_size=20) | st.sampled_from(
    ["5", "1.5", "true", "high", "1e3", "٣", "1_0", " 5"]
)

numbers = st.one_of(
    st.integers(),
    st.integers(-2, 1002),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, 1000, MAX_SECONDS, 10**30]),
)

offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
moments = st.datetimes().map(datetime.isoformat) | st.datetimes(
    timezones=offsets.map(
        lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
    )
).map(datetime.isoformat)

scalars = st.none() | st.booleans() | numbers | texts | moments

documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
"""Any JSON."""

GOOD: dict[str, st.SearchStrategy[Any]] = {
    "content": texts,
    "kind": st.text(min_size=1, max_size=101),
    "max_attempts": st.integers(1, 1000),
    "timeout_seconds": st.floats(0, MAX_SECONDS),
    "delay_seconds": st.floats(0, MAX_SECONDS),
    "run_at": moments,
    "expires_at": moments,
    "priority": st.sampled_from(list(Priority)),
    "queue": st.from_regex(r"[A-Za-z0-9._-]{1,101}"),
    "unique_key": st.text(min_size=1, max_size=256),
    "retry_base_seconds": st.floats(0, 100),
    "retry_max_seconds": st.floats(0, 100),
}

tasks = st.fixed_dictionaries(
    {"content": GOOD["content"]},
    optional={name: values | st.none() for name, values in GOOD.items() if name != "content"},
)
"""That are taken more often than not."""

names = st.sampled_from([*GOOD, "other"])

bent_tasks = st.builds(
    lambda task, name, value: task | {name: value}, tasks, names, scalars | documents
)
"""With one field that may be anything."""

found = tasks | bent_tasks | documents


def as_json(document: Any, *, is_ascii: bool) -> bytes:
    """Raises UnicodeEncodeError for half a surrogate pair that is not escaped."""
    return json.dumps(document, ensure_ascii=is_ascii).encode()


def by_schema(body: bytes) -> CreateRequest | int:
    """What the schema makes of it, or the status of its refusal."""
    try:
        order: CreateRequest = load(SCHEMA, body)
    except Problem as problem:
        return problem.status.value
    return order


def test_every_option_is_drawn() -> None:
    assert set(GOOD) == {"content", *Options.__struct_fields__}


@drawn
@given(found, st.booleans())
@example({"content": "x", "run_at": "2099-01-01T00:00:00+00:00:30"}, True)
@example({"content": "\\u0000"}, True)
def test_readers_agree(document: Any, is_ascii: bool) -> None:
    body = as_json(document, is_ascii=is_ascii)

    quickly, slowly = quick_order(body), by_schema(body)

    if b"\\u0000" in body:  # it is left to the schema
        assert quickly is None
    else:
        assert quickly == (slowly if isinstance(slowly, CreateRequest) else None)


@drawn
@given(st.lists(found, min_size=1, max_size=12))
async def test_batch_is_read_as_each_of_its_tasks(batch: list[Any]) -> None:
    body = as_json({"tasks": batch}, is_ascii=True)
    expected = [by_schema(as_json(each, is_ascii=True)) for each in batch]
    wrong = [number for number, each in enumerate(expected) if not isinstance(each, CreateRequest)]

    if not wrong:
        assert await load_tasks_create(body, 100_000) == expected
        return
    with pytest.raises(Problem) as raised:
        await load_tasks_create(body, 100_000)
    assert raised.value.status == 422
    errors = raised.value.extensions["errors"]
    assert 1 <= len(errors) <= 10
    told = list(dict.fromkeys(int(each["pointer"].split("/")[2]) for each in errors))
    assert told == wrong[: len(told)]
    assert len(told) == len(wrong) or len(errors) == 10


@drawn
@given(st.binary(max_size=60) | documents.map(lambda each: json.dumps(each).encode()))
@example(b'{"tasks":[{"content":"x"}],"tasks":[]}')
@example(b'{"tasks":[{"content":"x"}]}x')
@example(b'{"tasks":[{"content":"\xff"}]}')
@example(b'{"tasks":[{"content":"x"}],"a":01}')
@example(b'{"a":1,')
@example(b'{"tasks":[1')
async def test_body_of_a_batch_is_refused_as_what_it_is(body: bytes) -> None:
    with pytest.raises(Problem) as raised:
        await load_tasks_create(body, 100_000)

    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert raised.value.status == 400
    else:
        assert raised.value.status == 422


@drawn
@given(st.datetimes(timezones=offsets.map(timezone), min_value=datetime(2, 1, 1)))
def test_moment_comes_back(moment: datetime) -> None:
    if moment.utcoffset() % timedelta(minutes=1):  # RFC 3339 has none of those
        with pytest.raises(ValueError, match="RFC 3339"):
            read_moment(moment.isoformat())
        moment = moment.astimezone(UTC)
    read = read_moment(moment.isoformat())
    assert read == moment
    shown = msgspec.json.decode(msgspec.json.encode(shown_moment(read)))
    assert len(shown) == len("2026-11-24T17:02:11.904211Z")
    assert read_moment(shown) == moment


@drawn
@given(st.text(max_size=30) | st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?.*"))
def test_no_other_text_is_a_moment(text: str) -> None:
    try:
        moment = read_moment(text)
    except ValueError:
        return
    assert moment.tzinfo is UTC
    if (len(text) > len("2026-11-24T17:02:11") and text[-1] in "Zz") or text[-6] in "+-":
        # msgspec reads RFC 3339 too, and rounds where we cut.
        assert abs(msgspec.convert(text, datetime) - moment) < timedelta(microseconds=2)


CURSORS = Cursors(b"s" * 32)
FILTER = Filter((Status.FAILED,), "k", None, datetime(2026, 1, 1, tzinfo=UTC))


@drawn
@given(st.uuids())
def test_cursor_comes_back(id: Any) -> None:
    assert CURSORS.load(FILTER, CURSORS.dump(FILTER, str(id))) == str(id)


@drawn
@given(st.uuids(), st.integers(0, 39), st.characters())
def test_changed_cursor_is_refused(id: Any, place: int, character: str) -> None:
    cursor = CURSORS.dump(FILTER, str(id))
    changed = cursor[:place] + character + cursor[place + 1 :]
    if changed != cursor:
        with pytest.raises(Problem):
            CURSORS.load(FILTER, changed)
    for longer in (character + cursor, cursor + character, cursor[:-1]):
        with pytest.raises(Problem):
            CURSORS.load(FILTER, longer)


def test_cursor_is_of_one_filter_and_one_secret() -> None:
    id = "0192d1a5-7c2e-7e2a-9d3f-0123456789ab"
    cursor = CURSORS.dump(FILTER, id)

    for filter in (Filter(), FILTER._replace(queue="q"), FILTER._replace(statuses=())):
        with pytest.raises(Problem):
            CURSORS.load(filter, cursor)
    with pytest.raises(Problem):
        Cursors(b"t" * 32).load(FILTER, cursor)
    assert Cursors(b"s" * 32).load(FILTER, cursor) == id
    assert CURSORS.load(FILTER, None) is None
