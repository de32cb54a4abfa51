"""Bodies that are wrong: each is refused in the contract's words, leaves no row, no trace of itself
in answers or logs, and a service that is well."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.harness import ServiceProcess, query
from tests.wire import Answer, assert_problem, chunk, post, request, talk

CANARY = "canary-7f3a"
"""In every body; to be found nowhere else."""

MAX_BYTES = 262_144

LEAKS = (CANARY, "Traceback", "psycopg", "INSERT", "SELECT", "aiohttp", 'File \\"', ".py")

Send = Callable[[bytes], Answer]


@pytest.fixture
def send(shared_service: ServiceProcess) -> Iterator[Send]:
    """Sends to a service, and makes sure afterwards that no harm was done."""
    url = shared_service.env["DATABASE_URL"]
    before = query(url, "SELECT count(*) FROM task")
    log_start = len(shared_service.log_path.read_bytes())
    output_start = len(shared_service.output())
    sent: list[Answer] = []

    def send(data: bytes) -> Answer:
        answer = talk(shared_service.port, data)
        assert not [leak for leak in LEAKS if leak in answer.body.decode()], answer.body
        assert CANARY not in str(answer.headers)
        sent.append(answer)
        return answer

    yield send

    id = uuid4().hex
    well = talk(shared_service.port, request("GET", "/health", f"X-Request-ID: {id}"))
    assert well.json() == {"status": "ok"}
    assert query(url, "SELECT count(*) FROM task") == before
    shared_service.wait_until_logged(id)
    log = shared_service.log_path.read_bytes()[log_start:].decode()
    output = shared_service.output()[output_start:]
    for leak in (CANARY, "Traceback", '"exception"', '"error"'):
        assert leak not in log
    assert CANARY not in output
    assert "Traceback" not in output
    for answer in sent:
        assert 1 <= log.count(answer.headers["x-request-id"]) <= 2


def content(value: Any) -> bytes:
    return json.dumps({"content": value}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"content"',
        b'{"content": "canary-7f3a"',
        b'{"content": "canary-7f3a',
        b'{"content": "canary-7f3a"}}',
        b'{"content": "canary-7f3a"} x',
        b'{"content": "canary-7f3a"}{"content": "y"}',
        b"{'content': 'canary-7f3a'}",
        b'{content: "canary-7f3a"}',
        b'{"content": "canary-7f3a",}',
        b'{"content": "canary\n7f3a"}',
        b'{"content": "\\x canary-7f3a"}',
        b'{"content": "\\u12 canary-7f3a"}',
        b'{"content": "canary-7f3a"} // comment',
        b"content=canary-7f3a",
        b"<content>canary-7f3a</content>",
        b"undefined",
        b"NaN",
        b"Infinity",
        b'{"content": NaN}',
        b'{"content": -Infinity}',
        b'{"content": 01}',
        b'{"content": 1e}',
        b'{"content": +1}',
        b'{"content": "canary-7f3a \xff"}',
        b'{"content": "canary-7f3a \xc0\xaf"}',
        b'{"content": "canary-7f3a \xed\xa0\x80"}',
        b'{"content": "canary-7f3a \xf4\x90\x80\x80"}',
        b'{"content": "canary-7f3a \\ud800"}',
        b'{"content": "canary-7f3a \\udc00\\ud800"}',
        b'{"content": "canary-7f3a \\ud800x"}',
        b'{"\\ud800": "canary-7f3a"}',
        b'{"content": "canary-7f3a \x00"}',
        b"\x00" * 1000,
        b'\xef\xbb\xbf{"content": "canary-7f3a"}',
        '{"content": "canary-7f3a"}'.encode("utf-16"),
        '{"content": "canary-7f3a"}'.encode("utf-32"),
        b"[" * 5000 + b"]" * 5000,
        b"[" * 100_000,
        b'{"content": ' + b"[" * 5000 + b'"canary-7f3a"' + b"]" * 5000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"content": ' + b"9" * 100_000 + b"x}",
        b'{"content": 1e999999999999999999999999}',
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_body_that_is_not_json(send: Send, body: bytes) -> None:
    assert_problem(send(post(body)), 400)


@pytest.mark.parametrize(
    "body", [b"[]", b'["canary-7f3a"]', b'"canary-7f3a"', b"1", b"null", b"true"]
)
async def test_body_that_is_no_object(send: Send, body: bytes) -> None:
    errors = [{"pointer": "", "detail": "Must be an object."}]

    assert_problem(send(post(body)), 422, errors=errors)


@pytest.mark.parametrize(
    "value",
    [None, 1, 0, 1.5, True, False, [], ["canary-7f3a"], {}, {"canary-7f3a": "x"}, 2**63, 10**50],
    ids=repr,
)
async def test_content_that_is_no_string(send: Send, value: Any) -> None:
    answer = send(post(content(value)))

    (error,) = assert_problem(answer, 422, errors=answer.json().get("errors"))["errors"]
    assert error["pointer"] == "/content"
    assert error["detail"]


async def test_content_that_is_missing(send: Send) -> None:
    errors = [{"pointer": "/content", "detail": "Missing data for required field."}]

    assert_problem(send(post(b"{}")), 422, errors=errors)


@pytest.mark.parametrize("value", ["\0", "canary-7f3a\0", "\0canary-7f3a", "a\0b\0c"])
async def test_content_with_nul(send: Send, value: str) -> None:
    errors = [{"pointer": "/content", "detail": "Must not contain NUL."}]

    assert_problem(send(post(content(value))), 422, errors=errors)


@pytest.mark.parametrize(
    ("name", "pointer"),
    [
        ("contents", "/contents"),
        ("Content", "/Content"),
        ("id", "/id"),
        ("status", "/status"),
        ("attempt", "/attempt"),
        ("worker_id", "/worker_id"),
        ("prio", "/prio"),
        ("", "/"),
        ("a/b~c", "/a~1b~0c"),
        ("_schema", "/_schema"),
        ("__proto__", "/__proto__"),
        ("a\0b", "/a\0b"),
    ],
)
async def test_unknown_field_is_named(send: Send, name: str, pointer: str) -> None:
    answer = send(post(json.dumps({"content": "canary-7f3a", name: "canary-7f3a"}).encode()))

    assert_problem(answer, 422, errors=[{"pointer": pointer, "detail": "Unknown field."}])


async def test_many_and_long_unknown_fields_are_named_in_brief(send: Send) -> None:
    document = {f"{number:04}{'x' * 100}": "canary-7f3a" for number in range(2000)}

    answer = send(post(json.dumps(document).encode()))

    assert_problem(answer, 422, errors=answer.json()["errors"])
    assert len(answer.body) < 2000


async def test_all_that_is_wrong_is_told_at_once(send: Send) -> None:
    answer = send(post(b'{"contents": "canary-7f3a", "content": 1}'))

    errors = {each["pointer"] for each in answer.json()["errors"]}
    assert errors == {"/content", "/contents"}


async def test_last_of_duplicate_keys_counts(shared_service: ServiceProcess) -> None:
    answer = talk(shared_service.port, post(b'{"content": 1, "content": "second"}'))

    assert answer.status == 201
    assert answer.json()["content"] == "second"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Content-Type: "],
        ["Content-Type: text/plain"],
        ["Content-Type: application/x-www-form-urlencoded"],
        ["Content-Type: multipart/form-data; boundary=x"],
        ["Content-Type: application/jsonx"],
        ["Content-Type: application/problem+json"],
        ["Content-Type: text/json"],
        ["Content-Type: json"],
        ["Content-Type: canary-7f3a"],
        ["Content-Type: ;;;=\xff\xfe"],
        ["Content-Type: application/json; charset=latin-1"],
        ["Content-Type: application/json; charset=utf-16"],
        ["Content-Type: application/json; charset=canary-7f3a"],
        ["Content-Type: text/plain, application/json"],
    ],
    ids=repr,
)
async def test_content_type_that_is_not_json(send: Send, headers: list[str]) -> None:
    answer = send(request("POST", "/task", *headers, body=b'{"content": "canary-7f3a"}'))

    assert_problem(answer, 415)
    assert answer.headers["accept-post"] == "application/json"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x", "gzip, identity", "GZIP"])
@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b'{"content": "canary-7f3a"}'),
        b"\x1f\x8b\x08canary-7f3a junk",
        gzip.compress(b"\0" * 10_000_000),
        b'{"content": "canary-7f3a"}',
    ],
    ids=["whole", "junk", "bomb", "plain"],
)
async def test_compressed_body(send: Send, coding: str, body: bytes) -> None:
    answer = send(post(body, f"Content-Encoding: {coding}"))

    assert_problem(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"


async def test_gzip_without_saying_so_is_not_json(send: Send) -> None:
    assert_problem(send(post(gzip.compress(b'{"content": "canary-7f3a"}'))), 400)


def body_of(size: int) -> bytes:
    frame = len(content(CANARY))
    return content(CANARY + "x" * (size - frame))


def chunked(body: bytes) -> bytes:
    head = request("POST", "/task", "Content-Type: application/json", "Transfer-Encoding: chunked")
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    return head + b"".join(map(chunk, pieces)) + chunk(b"")


@pytest.mark.parametrize("framed", [post, chunked], ids=["plain", "chunked"])
@pytest.mark.parametrize("size", [MAX_BYTES + 1, 2_000_000])
async def test_body_over_the_limit(send: Send, framed: Callable[[bytes], bytes], size: int) -> None:
    answer = send(framed(body_of(size)))

    assert_problem(answer, 413)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("framed", [post, chunked], ids=["plain", "chunked"])
async def test_body_just_within_the_limit(
    shared_service: ServiceProcess, framed: Callable[[bytes], bytes]
) -> None:
    assert talk(shared_service.port, framed(body_of(MAX_BYTES))).status == 201
