"""The file of queries: who asks for each, and that none of them is loose."""

from __future__ import annotations

import re
from importlib import resources

from tasksvc.store import queries

TEXT = (resources.files("tasksvc.store") / "tasks.sql").read_text("utf-8")
STORE = (resources.files("tasksvc.store") / "task_store.py").read_text("utf-8")


def test_every_header_is_a_query() -> None:
    loaded = queries.load()

    assert list(loaded) == re.findall(r"^-- (\w+) --$", TEXT, re.MULTILINE)
    assert len(loaded) >= 20
    assert len(set(loaded)) == TEXT.count(" --\n")


def test_every_query_is_one_statement_without_comments() -> None:
    for name, statement in queries.load().items():
        assert statement, name
        assert ";" not in statement, name
        assert not re.search(r"^\s*--", statement, re.MULTILINE), name


def test_each_query_is_asked_for_by_the_method_of_its_name_alone() -> None:
    methods = re.split(r"^    (?:async )?def ", STORE, flags=re.MULTILINE)[1:]
    asked = [
        (method.partition("(")[0], name)
        for method in methods
        for name in re.findall(r'_run\(\s*"\w+",\s*"(\w+)"', method)
    ]

    assert sorted(asked) == sorted((name, name) for name in queries.load())
    assert len(re.findall(r"self\._run\(", STORE)) == len(asked)


def test_every_change_of_a_task_names_the_statuses_that_it_may_leave() -> None:
    for name, statement in queries.load().items():
        if re.search(r"UPDATE task\b", statement):
            assert re.search(r"status (=|IN) ", statement), name
            # Locked before, or found in the order of the ids.
            assert "FOR UPDATE" in statement or "ORDER BY id\n" in statement, name


def test_rows_are_locked_in_an_order() -> None:
    for name, statement in queries.load().items():
        for select in re.findall(r"SELECT[^;]*?FOR UPDATE", statement):
            if re.search(r"FROM (task|result)\b|JOIN task", select):
                assert "ORDER BY" in select, name
