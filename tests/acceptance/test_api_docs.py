"""What docs/api.md says is true."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from http import HTTPStatus
from operator import attrgetter
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from marshmallow import Schema, missing
from marshmallow.validate import Length, Range

from tasksvc.domain.attempt import Attempt
from tasksvc.domain.queue import Queue
from tasksvc.domain.schedule import Schedule
from tasksvc.domain.task import Task
from tasksvc.web.routes import OPS, TASKS, Endpoint, Scope
from tests.harness import ROOT, ServiceProcess, eventually, write_python_of_the_readme
from tests.wire import JSON, Answer, assert_problem, request, talk

API = (ROOT / "docs" / "api.md").read_text("utf-8")

ENDPOINTS = TASKS + OPS

LINE = attrgetter("line")

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
    return rows(sections()[endpoint.line]) or rows(sections()[first.line])


def chapter_of(endpoint: Endpoint) -> str:
    """Returns all that stands under the same headline of the second level."""
    parts = re.split(r"^## ", API, flags=re.MULTILINE)
    return next(part for part in parts if f"\n### `{endpoint.line}`\n" in part)


def example_of(endpoint: Endpoint) -> str:
    """Returns the answer of its last example."""
    return commands(sections()[endpoint.line])[-1][1]


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
    assert set(sections()) == {each.line for each in ENDPOINTS}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=LINE)
def test_section_names_the_endpoint_s_status_codes(endpoint: Endpoint) -> None:
    section = sections()[endpoint.line]
    paragraphs = re.split(r"\n\n|```console\n.*?```", section, flags=re.DOTALL)
    (answers,) = (each for each in paragraphs if re.match(r"\s*`[2]\d\d`", each))

    codes = {int(code) for code in re.findall(r"`([2-5]\d\d)`", answers)}
    assert codes == {*endpoint.answers, *endpoint.errors}


@pytest.mark.parametrize("endpoint", list(filter(schema_of, ENDPOINTS)), ids=LINE)
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


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=LINE)
def test_section_has_an_example(endpoint: Endpoint) -> None:
    command, _ = commands(sections()[endpoint.line])[-1]
    pattern = re.sub(r"\{\w+\}", "[^/]+", endpoint.path)

    assert re.search(rf"http://127\.0\.0\.1:8000{pattern}(['? ]|$)", command)
    assert endpoint.method == next(iter(re.findall(r"-X (\w+)", command)), "GET")


@pytest.mark.parametrize(
    ("endpoint", "shape"),
    [(each, shape) for each in ENDPOINTS for shape in each.answers.values() if shape],
    ids=lambda value: getattr(value, "line", None),
)
def test_answer_has_its_shape(endpoint: Endpoint, shape: type[msgspec.Struct]) -> None:
    shown = json.loads(example_of(endpoint))
    # msgspec reads no `Raw | None`; the JSON of a result has no type.
    typed = {name: value for name, value in shown.items() if name != "result"}
    msgspec.json.decode(json.dumps(typed), type=shape)
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", chapter_of(endpoint)))))

    assert set(shown) <= set(shape.__struct_fields__)
    assert set(shape.__struct_fields__) <= told | set(shown)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=LINE)
def test_scope_follows_the_method(endpoint: Endpoint) -> None:
    reads = {Scope.READ, Scope.METRICS, Scope.NONE}

    assert (endpoint.scope in reads) is (endpoint.method == "GET")
    assert (endpoint.scope is Scope.NONE) is endpoint.path.startswith("/health")


def ask(service: ServiceProcess, endpoint: Endpoint, search: str = "", **body: object) -> Answer:
    """Asks for something that does not exist, where the path names one."""
    path = endpoint.path.replace("{task_id}", str(uuid4())).replace("{name}", "none") + search
    head = [JSON] if body else []
    sent = json.dumps(body).encode() if body else None
    return talk(service.port, request(endpoint.method, path, *head, body=sent))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=LINE)
def test_errors_of_the_table_are_the_endpoint_s(
    shared_service: ServiceProcess, endpoint: Endpoint
) -> None:
    knows_404 = ask(shared_service, endpoint).status == 404
    refuses_fields = ask(shared_service, endpoint, unknown=1).status == 422
    refuses_parameters = ask(shared_service, endpoint, "?unknown=1").status == 422

    assert knows_404 is (404 in endpoint.errors)
    assert refuses_fields is (endpoint.body is not None)
    if endpoint.query is not None:
        assert refuses_parameters
    if endpoint.body or endpoint.query:
        assert 422 in endpoint.errors


@pytest.mark.parametrize("path", sorted({each.path for each in ENDPOINTS}))
def test_allow_has_the_methods_of_the_table(shared_service: ServiceProcess, path: str) -> None:
    methods = {each.method for each in ENDPOINTS if each.path == path}
    heads = {"HEAD"} if "GET" in methods else set()

    answer = talk(shared_service.port, request("PROPFIND", re.sub(r"\{\w+\}", "x", path)))

    assert_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == methods | heads


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
