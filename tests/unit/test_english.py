"""The words of the project: log events are distinct, and texts avoid words that are hard."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT

LOGS = frozenset({"debug", "info", "warning", "error", "exception"})

HARD = re.compile(r"\b(nobody|whoever|anew|thereby|bury|whom)\b", re.IGNORECASE)
"""Archaic words, and words of our own for things that have a name."""

VERB = re.compile(r"[A-Z][a-z]+s\b")
"""The first word of a function's docstring: "Returns", "Waits"."""

NO_VERBS = frozenset({"As", "Its", "Is", "This", "Those", "These", "Settings", "Lines", "Tasks"})

CLEAN = ("domain", "stream", "loop.py", "runs.py", "slices.py")
"""Where each function's docstring begins with a verb."""

SOURCES = sorted((ROOT / "tasksvc").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the comments and the texts of a file, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string


def events() -> Iterator[tuple[str, str, str]]:
    """Yields the file, the event and the action of each call that logs constants."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOGS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                for keyword in node.keywords:
                    if keyword.arg == "action" and isinstance(keyword.value, ast.Constant):
                        yield name_of(path), node.args[0].value, keyword.value.value


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the docstring of each function. A property is documented as a value, a
    constructor by its parameters, and a command of click by what the user asks for."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            decorators = " ".join(map(ast.unparse, node.decorator_list))
            if (text := ast.get_docstring(node)) and not re.search(
                r"property|\.command|\.group|fixture", decorators
            ):
                yield node.lineno, text


@pytest.mark.parametrize("name", CLEAN)
def test_docstrings_of_functions_begin_with_a_verb(name: str) -> None:
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / "tasksvc" / name)]
    others = [
        f"{name_of(path)}:{line}: {text}"
        for path in paths
        for line, text in functions(path)
        if not VERB.match(text) or text.split()[0] in NO_VERBS
    ]

    assert paths
    assert others == []


def test_one_event_has_one_action_and_one_action_one_event() -> None:
    actions, names = defaultdict(set), defaultdict(set)
    for _, event, action in events():
        actions[event].add(action)
        names[action].add(event)

    assert len(actions) > 20
    assert [each for each in actions.items() if len(each[1]) > 1] == []
    assert [each for each in names.items() if len(each[1]) > 1] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_texts_have_no_hard_words(path: Path) -> None:
    hard = [
        (line, text)
        for line, text in texts(path)
        if HARD.search(text) and text != '"nobody"'  # a user of the system
    ]

    assert hard == []


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("migrations/*.sql")],
    ids=name_of,
)
def test_documents_have_no_hard_words(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()

    assert [line for line in lines if HARD.search(line)] == []
