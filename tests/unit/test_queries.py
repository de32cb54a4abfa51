"""The files of queries: each query has a caller, and no query is left over."""

from __future__ import annotations

import re
from importlib import resources
from itertools import chain

import pytest

from tasksvc.domain.task import Options
from tasksvc.store import migrate, queries

FOLDER = resources.files("tasksvc.store")

FILES = pytest.mark.parametrize(
    ("file", "store"),
    [
        ("tasks.sql", "task_store.py"),
        ("schedules.sql", "schedule_store.py"),
        ("queues.sql", "queue_store.py"),
    ],
)


@FILES
def test_every_header_is_a_query(file: str, store: str) -> None:
    text = (FOLDER / file).read_text("utf-8")
    loaded = queries.load(file)

    assert list(loaded) == re.findall(r"^-- (\w+) --$", text, re.MULTILINE)
    assert len(loaded) >= 4
    assert len(set(loaded)) == text.count(" --\n")


@FILES
def test_every_query_is_one_statement_without_comments(file: str, store: str) -> None:
    for name, statement in queries.load(file).items():
        assert statement, name
        assert ";" not in statement, name
        assert not re.search(r"^\s*--", statement, re.MULTILINE), name


@FILES
def test_each_query_is_asked_for_by_the_method_of_its_name_alone(file: str, store: str) -> None:
    text = (FOLDER / store).read_text("utf-8")
    methods = re.split(r"^    (?:async )?def ", text, flags=re.MULTILINE)[1:]
    asked = [
        (method.partition("(")[0], name)
        for method in methods
        for name in re.findall(r'_run\(\s*[^,]+,\s*"(\w+)"', method)
    ]

    assert sorted(asked) == sorted((name, name) for name in queries.load(file))
    assert len(re.findall(r"self\._run\(", text)) == len(asked)


@FILES
def test_every_change_of_a_task_names_the_statuses_that_it_may_leave(file: str, store: str) -> None:
    for name, statement in queries.load(file).items():
        if re.search(r"UPDATE task\b", statement):
            assert re.search(r"status (=|IN) ", statement), name
            # Locked before, or found in the order of the ids.
            assert "FOR UPDATE" in statement or "ORDER BY id\n" in statement, name


@FILES
def test_rows_are_locked_in_an_order(file: str, store: str) -> None:
    for name, statement in queries.load(file).items():
        for select in re.findall(r"SELECT[^;]*?FOR UPDATE", statement):
            if re.search(r"FROM (task|result|schedule)\b|JOIN task", select):
                assert "ORDER BY" in select, name


def test_task_of_a_schedule_has_every_option_but_moments() -> None:
    statement = queries.load("schedules.sql")["run_schedules"]

    for option in {*Options.__struct_fields__} - {"delay_seconds", "run_at", "expires_at"}:
        assert len(re.findall(rf"\b{option}\b", statement)) >= 3, option


def test_every_number_is_one_that_postgresql_before_16_reads() -> None:
    """Not 0x7F or 1_000: the oldest that is promised is 14."""
    folder = resources.files("tasksvc") / "migrations"
    migrations = [path.read_text("utf-8") for path in folder.iterdir()]
    loaded = [queries.load(file).values() for file in ("tasks.sql", "schedules.sql", "queues.sql")]

    for text in (migrate._TABLE, *migrations, *chain.from_iterable(loaded)):
        sql = re.sub(r"--.*", "", text)
        assert not re.findall(r"(?<![\w'])\d+[a-zA-Z_]\w*", sql)
