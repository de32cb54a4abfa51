"""What docs/api.md says is true."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from marshmallow import Schema, missing
from marshmallow.validate import Length, Range

from tasksvc.domain.attempt import Attempt
from tasksvc.domain.queue import Queue
from tasksvc.domain.schedule import Schedule
from tasksvc.domain.task import Task
from tasksvc.web.routes import OPS, TASKS, Endpoint
from tests.harness import ROOT, ServiceProcess, eventually, write_python_of_the_readme

API = (ROOT / "docs" / "api.md").read_text("utf-8")

ENDPOINTS = TASKS + OPS

HEADLINE = re.compile(r"^#+ (.*)$", re.MULTILINE)

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def sections() -> dict[str, str]:
    """By the route that is their headline."""
    _, *parts = re.split(r"^#+ ", API, flags=re.MULTILINE)
    found = (re.match(r"`(\S+ \S+)`\n(.*)", part, re.DOTALL) for part in parts)
    return {match[1]: match[2] for match in found if match}


def schema_of(endpoint: Endpoint) -> type[Schema] | None:
    return endpoint.body or endpoint.query


def table_of(endpoint: Endpoint) -> dict[str, tuple[str, str]]:
    """Returns the table of its section, or of the first endpoint with the same schema."""
    first = next(each for each in ENDPOINTS if schema_of(each) is schema_of(endpoint))
    return rows(sections()[line_of(endpoint)]) or rows(sections()[line_of(first)])


def line_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def rows(section: str) -> dict[str, tuple[str, str]]:
    """The type and the default of each field of its table."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| .*\|$", section, re.MULTILINE)
    return {name: (type, default) for name, type, default in found}


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of its consoles, each with what is shown below it."""
    consoles = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [
        pair for each in consoles for pair in re.findall(r"^\$ (.*)\n(.*)$", each, re.MULTILINE)
    ]


def test_every_endpoint_has_a_section() -> None:
    assert set(sections()) == set(map(line_of, ENDPOINTS))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=line_of)
def test_section_names_the_endpoint_s_status_codes(endpoint: Endpoint) -> None:
    section = sections()[line_of(endpoint)]
    paragraphs = re.split(r"\n\n|```console\n.*?```", section, flags=re.DOTALL)
    (answers,) = (each for each in paragraphs if re.match(r"\s*`[2]\d\d`", each))

    assert {int(code) for code in re.findall(r"`([2-5]\d\d)`", answers)} == set(endpoint.answers)


@pytest.mark.parametrize("endpoint", list(filter(schema_of, ENDPOINTS)), ids=line_of)
def test_table_has_every_field_with_its_default_and_its_limits(endpoint: Endpoint) -> None:
    schema = schema_of(endpoint)
    assert schema is not None
    known, table = schema().fields, table_of(endpoint)

    assert set(table) == set(known)
    for name, field in known.items():
        type, default = table[name]
        assert (default == "required") is field.required, name
        if field.load_default is not missing:
            assert default == f"`{json.dumps(field.load_default).strip(chr(34))}`", name
        for bounds in field.validators:
            if isinstance(bounds, Length | Range):
                for bound in (bounds.min, bounds.max):
                    assert bound is None or f"{bound:,.0f}" in re.findall(r"[\d,]*\d", type), name


@pytest.mark.parametrize(
    ("begin", "end", "shown"),
    [
        ("## A task", "### ", Task.__struct_fields__),
        ("### `GET /task/{task_id}/attempts`", "### ", Attempt._fields),
        ("## Queues", "### ", Queue._fields),
        ("## Schedules", "## Health", Schedule._fields),
    ],
)
def test_every_key_of_an_answer_is_told(begin: str, end: str, shown: tuple[str, ...]) -> None:
    section = API.partition(f"\n{begin}\n")[2].partition(f"\n{end}")[0]

    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", section))))
    assert set(shown) <= told


@pytest.mark.parametrize("request_line", sections())
def test_section_has_an_example(request_line: str) -> None:
    method, path = request_line.split(" ")
    command, _ = commands(sections()[request_line])[-1]
    pattern = re.sub(r"\{\w+\}", "[^/]+", path)

    assert re.search(rf"http://127\.0\.0\.1:8000{pattern}(['? ]|$)", command)
    assert method == next(iter(re.findall(r"-X (\w+)", command)), "GET")


async def test_examples_go_as_they_are_shown(
    start_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    write_python_of_the_readme(tmp_path)
    service = start_service(TASKSVC_HANDLERS="shop.tasks", PYTHONPATH=f"{ROOT}:{tmp_path}")
    ids: dict[str, str] = {}

    def run(command: str) -> str:
        command = command.replace("http://127.0.0.1:8000", service.url)
        command = UUID.sub(lambda shown: ids[shown[0]], command)
        done = subprocess.run(command, shell=True, capture_output=True, check=True, text=True)
        return done.stdout.strip()

    for command, shown in commands(API):
        shown = shown.replace("Unprocessable Entity", HTTPStatus(422).phrase)
        output = await asyncio.to_thread(run, command)
        if "-X" not in command and not is_like(output, shown, ids):  # it may still be under way
            await eventually(lambda command=command, shown=shown: is_like(run(command), shown, ids))
        else:
            assert is_like(output, shown, ids), f"{command}\n{output}\n{shown}"


def is_like(output: str, shown: str, ids: dict[str, str]) -> bool:
    """Whether they differ in moments and in ids alone, and each id stands for the same always."""
    if MOMENT.sub("", UUID.sub("", output)) != MOMENT.sub("", UUID.sub("", shown)):
        return False
    pairs = list(zip(found_ids(shown), found_ids(output), strict=True))
    return all(ids.setdefault(one, other) == other for one, other in pairs)


def found_ids(text: str) -> Iterator[str]:
    return (match[0] for match in UUID.finditer(text))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", API))
def test_links_lead_somewhere(link: str) -> None:
    name, _, anchor = link.partition("#")
    path = ROOT / "docs" / name if name else ROOT / "docs" / "api.md"

    anchors = {anchor_of(each) for each in HEADLINE.findall(path.read_text("utf-8"))}
    assert not anchor or anchor in anchors


def anchor_of(headline: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", headline.lower()).replace(" ", "-")
