"""The kind `http`: what is sent, what an answer means, and where no task may go."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tasksvc.domain.retry import Permanent, Retry
from tasksvc.domain.task import Claim
from tasksvc.handlers.addresses import Allowed, Target, WrongTarget, is_public
from tasksvc.handlers.http import HttpDelivery, NotDelivered
from tasksvc.handlers.results import Encoded
from tests.harness import eventually


class Receiver:
    """A server that keeps what it is sent, and answers as the test wants."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], str]] = []
        self.targets: list[str] = []
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({"ok": True})
        self.gone = asyncio.Event()
        self.waits = False
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.text()))
        self.targets.append(request.raw_path)
        if self.waits:
            try:
                await asyncio.sleep(60)
            finally:
                self.gone.set()
        return self.answer()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def make_delivery() -> AsyncIterator[Callable[..., HttpDelivery]]:
    made: list[HttpDelivery] = []

    def make(*allowed: str, allows_private: bool = True) -> HttpDelivery:
        made.append(HttpDelivery(allowed, allows_private=allows_private, max_answer_bytes=100))
        return made[-1]

    yield make
    for delivery in made:
        await delivery.close()


@pytest.fixture
def delivery(receiver: Receiver, make_delivery: Callable[..., HttpDelivery]) -> HttpDelivery:
    return make_delivery(receiver.host)


def claim(content: object, timeout_seconds: float | None = None) -> Claim:
    text = content if isinstance(content, str) else json.dumps(content)
    return Claim("an-id", 2, 1, 3, text, None, 0.0, timeout_seconds, "http")


def kept(result: Encoded | None) -> str | None:
    """The JSON that is kept with the task."""
    return None if result is None else result.json


async def deliver(delivery: HttpDelivery, receiver: Receiver, **order: Any) -> Any:
    return await delivery(claim({"url": f"http://{receiver.host}/hook?a=b", **order}))


async def test_body_and_headers_arrive(delivery: HttpDelivery, receiver: Receiver) -> None:
    result = await deliver(
        delivery, receiver, headers={"x-shop": "7", "content-type": "text/plain"}, body="hello"
    )

    assert kept(result) == '{"ok": true}'
    ((headers, body),) = receiver.requests
    assert body == "hello"
    assert headers["X-Shop"] == "7"
    assert headers["Content-Type"] == "text/plain"
    assert headers["Tasksvc-Task-Id"] == headers["Idempotency-Key"] == "an-id"
    assert headers["Tasksvc-Attempt"] == "2"
    assert headers["User-Agent"] == "tasksvc"


async def test_trace_context_is_passed_on(delivery: HttpDelivery, receiver: Receiver) -> None:
    order = claim({"url": f"http://{receiver.host}/hook"})
    await delivery(order._replace(traceparent=f"00-{'a' * 32}-{'b' * 16}-01"))
    await delivery(order)

    (first, _), (second, _) = receiver.requests
    assert re.fullmatch(f"00-{'a' * 32}-(?!b)[0-9a-f]{{16}}-01", first["traceparent"])
    assert "traceparent" not in second


async def test_body_that_is_no_text_is_sent_as_json(
    delivery: HttpDelivery, receiver: Receiver
) -> None:
    await deliver(delivery, receiver, body={"a": [1, None]})

    ((headers, body),) = receiver.requests
    assert (headers["Content-Type"], body) == ("application/json", '{"a": [1, null]}')


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (lambda: web.json_response([1]), "[1]"),
        (lambda: web.Response(text="done ü", status=202), '"done ü"'),
        (lambda: web.Response(status=204), None),
        (lambda: web.Response(body=b"\xff", content_type="text/plain"), '"�"'),
    ],
)
async def test_answer_is_the_result(
    delivery: HttpDelivery, receiver: Receiver, answer: Any, result: Any
) -> None:
    receiver.answer = answer

    assert kept(await deliver(delivery, receiver)) == result


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 410, 422])
async def test_refusal_is_permanent(
    delivery: HttpDelivery, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda: web.Response(status=status, headers={"Location": "http://x/"})

    with pytest.raises(Permanent, match=f"It answered {status}"):
        await deliver(delivery, receiver)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_trouble_is_tried_again(
    delivery: HttpDelivery, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda: web.Response(status=status)

    with pytest.raises(NotDelivered, match=f"It answered {status}"):
        await deliver(delivery, receiver)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999999", 86_400),
        ("in an hour", 3600),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
    ],
    ids=["seconds", "now", "too long", "date", "past"],
)
async def test_retry_after_is_respected(
    delivery: HttpDelivery, receiver: Receiver, value: str, seconds: float
) -> None:
    if value == "in an hour":  # from now, not from the collection of the tests
        value = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    receiver.answer = lambda: web.Response(status=503, headers={"Retry-After": value})

    with pytest.raises(Retry) as raised:
        await deliver(delivery, receiver)

    assert raised.value.after_seconds == pytest.approx(seconds, abs=60)


@pytest.mark.parametrize("value", ["soon", "-1", ""])
async def test_retry_after_that_means_nothing_is_left_aside(
    delivery: HttpDelivery, receiver: Receiver, value: str
) -> None:
    receiver.answer = lambda: web.Response(status=503, headers={"Retry-After": value})

    with pytest.raises(NotDelivered):
        await deliver(delivery, receiver)


def json_of(body: bytes, content_type: str = "application/json", **headers: str) -> Any:
    return lambda: web.Response(body=body, headers={"Content-Type": content_type, **headers})


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (
            json_of(b'{"n": 19876543210987654321, "f": 1.10}'),
            '{"n": 19876543210987654321, "f": 1.10}',
        ),
        (json_of(b" [1]\n"), "[1]"),
        (json_of(b"OK"), '"OK"'),
        (json_of(b"{"), '"{"'),
        (json_of(b"\xef\xbb\xbf[1]"), "[1]"),
        (json_of(b'["\xe9"]', "application/json; charset=latin-1"), '["é"]'),
        (json_of(b'["\xe9"]'), '["\ufffd"]'),
        (json_of(b"caf\xe9", "text/plain; charset=iso-8859-1"), '"café"'),
        (json_of(b"x", "text/plain; charset=punycode"), '"x"'),
        (json_of(b"x", "text/plain; charset=none-such"), '"x"'),
        (json_of(b"x", 'text/plain; charset="'), '"x"'),
        (json_of(b"{}", "application/problem+json"), "{}"),
        (json_of(gzip.compress(b"[1]"), **{"Content-Encoding": "gzip"}), "[1]"),
        (
            json_of(gzip.compress(b"[1") + gzip.compress(b"]"), **{"Content-Encoding": "gzip"}),
            "[1]",
        ),
        (json_of(gzip.compress(b"[1]") + b"\0\0", **{"Content-Encoding": "gzip"}), "[1]"),
        (json_of(zlib.compress(b"[1]"), **{"Content-Encoding": "deflate"}), "[1]"),
        (json_of(zlib.compress(b"[1]")[2:-4], **{"Content-Encoding": "Deflate"}), "[1]"),
        (json_of(b"", **{"Content-Encoding": "gzip"}), None),
    ],
)
async def test_answer_is_kept_as_it_was_written(
    delivery: HttpDelivery, receiver: Receiver, answer: Any, result: str | None
) -> None:
    receiver.answer = answer

    assert kept(await deliver(delivery, receiver)) == result


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (json_of(b"x" * 101, "text/plain"), "It has more than 100 bytes."),
        (json_of(b"[" + b"1," * 50_000 + b"1]"), "It has more than 100 bytes."),
        (json_of(b'"' * 60, "text/plain"), "The result has more than 100 bytes."),
        (
            json_of(gzip.compress(b"x" * 50_000_000), "text/plain", **{"Content-Encoding": "gzip"}),
            "It has more than 100 bytes.",
        ),
        (
            json_of(b"x", "text/plain", **{"Content-Encoding": "br"}),
            "Its content encoding is unknown.",
        ),
        (json_of(b"x", "text/plain", **{"Content-Encoding": "gzip"}), "It can't be decompressed."),
        (
            json_of(gzip.compress(b"x" * 99)[:-9], **{"Content-Encoding": "gzip"}),
            "It can't be decompressed.",
        ),
    ],
)
async def test_answer_that_cannot_be_kept_is_noted(
    delivery: HttpDelivery, receiver: Receiver, answer: Any, note: str
) -> None:
    """The other side has taken the task: it is completed."""
    receiver.answer = answer

    result = json.loads(kept(await deliver(delivery, receiver)) or "")

    assert (result["status"], result["note"]) == (200, note)
    assert len(result["text"]) <= 100


async def test_answer_nested_too_deep_is_noted(receiver: Receiver) -> None:
    delivery = HttpDelivery([receiver.host], allows_private=True, max_answer_bytes=65_536)
    receiver.answer = json_of(b"[" * 1000 + b"]" * 1000)

    result = json.loads(kept(await deliver(delivery, receiver)) or "")

    assert "nested" in result["note"]
    assert result["text"].startswith("[[[")


async def test_time_limit(delivery: HttpDelivery, receiver: Receiver) -> None:
    receiver.waits = True

    with pytest.raises(NotDelivered):
        await delivery(claim({"url": f"http://{receiver.host}/"}, timeout_seconds=0.1))


async def test_cancel_closes_the_connection(delivery: HttpDelivery, receiver: Receiver) -> None:
    receiver.waits = True
    delivering = asyncio.create_task(deliver(delivery, receiver))
    await eventually(lambda: receiver.requests)

    delivering.cancel()

    with pytest.raises(asyncio.CancelledError):
        await delivering
    async with asyncio.timeout(5):
        await receiver.gone.wait()


async def test_nobody_there_is_tried_again(make_delivery: Callable[..., HttpDelivery]) -> None:
    with pytest.raises(NotDelivered, match="can't be reached"):
        await make_delivery("127.0.0.1:1")(claim({"url": "http://127.0.0.1:1/"}))


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        {},
        {"url": 5},
        {"url": "ftp://127.0.0.1/"},
        {"url": "file:///etc/passwd"},
        {"url": "//127.0.0.1/"},
        {"url": "http:///path"},
        {"url": "http://user:word@127.0.0.1/"},
        {"url": "http://[::1/"},
        {"url": "http://127.0.0.1/", "method": "GET"},
        {"url": "http://127.0.0.1/", "headers": []},
        {"url": "http://127.0.0.1/", "headers": {"Host": "x"}},
        {"url": "http://127.0.0.1/", "headers": {"content-LENGTH": "1"}},
        {"url": "http://127.0.0.1/", "headers": {"X": "a\r\nY: b"}},
        {"url": "http://127.0.0.1/", "headers": {"X\r\n": "a"}},
        {"url": "http://127.0.0.1/", "headers": {"X": 1}},
        {"url": "http://127.0.0.1/", "headers": {"Content_Length": "1"}},
        {"url": "http://127.0.0.1/", "headers": {"Transfer_Encoding": "chunked"}},
        {"url": "http://127.0.0.1/", "headers": {"Proxy-Authorization": "x"}},
        {"url": "http://127.0.0.1/", "headers": {"Proxy_Connection": "x"}},
        {"url": "http://127.0.0.1/", "headers": {"Cookie": "a=b"}},
        {"url": "http://127.0.0.1/", "headers": {f"X-{number}": "" for number in range(101)}},
        {"url": "http://127.0.0.1/", "headers": None},
        {"url": "http://:word@127.0.0.1/"},
        {"url": "http://@127.0.0.1/"},
        {"url": "http://127.0.0.1\0.example/"},
        {"url": "http://127.0.0.1 .example/"},
        {"url": "http://127.0.0.1%00.example/"},
        {"url": f"http://{'x' * 64}.example/"},
        {"url": f"http://{'x.' * 130}example/"},
        {"url": "http://a..example/"},
        {"url": "http://.example/"},
        {"url": "http://-.example/"},
        {"url": "http://127.0.0.1:0/"},
        {"url": "http://127.0.0.1:65536/"},
        {"url": "http://127.0.0.1:x/"},
        {"url": "http://127.1/"},
        {"url": "http://2130706433/"},
        {"url": "http://0x7f.0.0.1/"},
        {"url": "http://127.0.0.01/"},
        {"url": "http://[fe80::1%25eth0]/"},
        {"url": "http://127.0.0.1/a\r\nX: b"},
        {"url": "http://127.0.0.1/\ud800"},
        {"url": "http://127.0.0.1/", "body": "\ud800"},
        '{"url": "http://127.0.0.1/"} x',
        "[" * 100_000,
    ],
)
async def test_order_that_will_not_do_is_permanent(
    make_delivery: Callable[..., HttpDelivery], content: object
) -> None:
    with pytest.raises(Permanent):
        await make_delivery("127.0.0.1")(claim(content))


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("example.com", "http://example.org/"),
        ("example.com", "http://example.com.evil.org/"),
        ("example.com", "http://evil-example.com/"),
        ("example.com", "http://sub.example.com/"),
        ("example.com", "http://example.com:8080/"),
        ("example.com:8080", "http://example.com/"),
        ("*.example.com", "http://example.com/"),
        ("*.example.com", "http://evilexample.com/"),
        ("example.com", "http://example.com@evil.org/"),
        ("example.com", "http://evil.org#@example.com/"),
        ("example.com", "http://evil.org\\@example.com/"),
        ("example.com:80", "https://example.com/"),
        ("*.example.com", "http://example.com./"),
    ],
)
async def test_host_that_is_not_allowed(
    make_delivery: Callable[..., HttpDelivery], allowed: str, url: str
) -> None:
    with pytest.raises(Permanent, match=r"not allowed|without a user|one of http"):
        await make_delivery(allowed)(claim({"url": url}))


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("Example.com", "http://EXAMPLE.com/"),
        ("example.com", "https://example.com:443/"),
        ("example.com", "http://example.com./"),
        ("*.example.com", "http://a.b.example.com/"),
        ("example.com:8080", "http://example.com:8080/"),
        ("*.example.com:8080", "http://a.example.com:8080/"),
        ("example.com:443", "https://example.com/"),
        ("example.com.", "https://example.com/"),
        ("bücher.example", "http://xn--bcher-kva.example/"),
        ("xn--bcher-kva.example", "http://BÜCHER.example/"),
        ("*.bücher.example", "http://a.xn--bcher-kva.example/"),
        ("[::1]:8080", "http://[0:0::1]:8080/"),
        ("10.0.0.1", "http://10.0.0.1/"),
        ("my_service:8080", "http://my_service:8080/"),
    ],
)
def test_host_that_is_allowed(allowed: str, url: str) -> None:
    assert Target.of(url) in Allowed([allowed])


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("224.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("240.0.0.1", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("2001:4860:4860::8888", True),
        ("::ffff:0:127.0.0.1", False),
        ("::ffff:93.184.216.34", False),
        ("::127.0.0.1", False),
        ("::93.184.216.34", False),
        ("64:ff9b:1::1", False),
    ],
)
def test_which_addresses_are_public(address: str, is_so: bool) -> None:
    assert is_public(address) is is_so


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:7f00:1]",
        "169.254.169.254",
        "localhost",
    ],
)
async def test_private_address_is_refused_by_any_name(
    receiver: Receiver, make_delivery: Callable[..., HttpDelivery], host: str
) -> None:
    delivery = make_delivery(f"{host}:{receiver.port}", allows_private=False)

    with pytest.raises(Permanent, match=r"address is not allowed|url is invalid"):
        await delivery(claim({"url": f"http://{host}:{receiver.port}/"}))
    assert receiver.requests == []


async def test_name_that_leads_to_a_private_address_among_others_is_refused(
    receiver: Receiver,
    make_delivery: Callable[..., HttpDelivery],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And each connection asks again: a name that changes its mind is no way in."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("93.184.216.34", "127.0.0.1")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    delivery = make_delivery(f"rebind.example:{receiver.port}", allows_private=False)

    with pytest.raises(Permanent, match="address is not allowed"):
        await delivery(claim({"url": f"http://rebind.example:{receiver.port}/"}))
    assert receiver.requests == []


# The wire.


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/hook?sig=a%2Fb%2Bc%3D", None),
        ("/hook?to=me%40example.com&at=10%3A30&p=a+b", None),
        ("/p%28x%29/%2f/%2F", None),
        ("/a//b/../c/./d", None),
        ("/x?", None),
        ("/x??a=b?c", None),
        ("/s?q=%E4%BD%A0&q=%e4", None),
        ("/{a}|b^c`<d>", None),
        ("/ü?ü=ü", "/%C3%BC?%C3%BC=%C3%BC"),
        ("/a b", "/a%20b"),
        ("/a#b", "/a"),
        ("", "/"),
        ("?a=b", "/?a=b"),
    ],
)
async def test_url_is_asked_as_it_is_written(
    delivery: HttpDelivery, receiver: Receiver, path: str, sent: str | None
) -> None:
    await delivery(claim({"url": f"http://{receiver.host}{path}"}))

    assert receiver.targets == [path if sent is None else sent]


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ('{"wei": 19876543210987654321,  "f": 1.10e400}', None),
        ('{"b":1,"a":2,"b":3}', None),
        ('"\\u00fc\\n"', "ü\n"),
        ("null", None),
        ("0", None),
    ],
)
async def test_body_is_sent_as_it_is_written(
    delivery: HttpDelivery, receiver: Receiver, body: str, sent: str | None
) -> None:
    await delivery(claim(f'{{"url": "http://{receiver.host}/", "body": {body}}}'))

    assert receiver.requests[0][1] == (body if sent is None else sent)


Write = Callable[[asyncio.StreamWriter], Any]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Write], Any]]:
    """Starts a server that answers with whatever a test writes."""
    servers: list[asyncio.Server] = []

    async def start(write: Write) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                await write(writer)
                await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        return f"127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def again_and_again(first: bytes, data: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)

    return write


def once(data: bytes, stays: bool = False) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if stays:
            await asyncio.sleep(60)

    return write


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@contextmanager
def free_loop(seconds: float = 0.05) -> Iterator[None]:
    """Nothing holds the loop for longer."""
    loop = asyncio.get_running_loop()
    late: list[float] = []

    async def tick() -> None:
        while True:
            asked = loop.time()
            await asyncio.sleep(0.001)
            late.append(loop.time() - asked)

    ticking = loop.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    # The machine may do other things for a moment: what holds the loop does so again and again.
    assert sorted(late)[-3:][:1] < [seconds]


@pytest.mark.parametrize(
    ("write", "is_delivered"),
    [
        (again_and_again(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), False),
        (again_and_again(b"", b"HTTP/1.1 103 E\r\nLink: " + b"a" * 4000 + b"\r\n\r\n"), False),
        (again_and_again(HEAD, b"X: " + b"a" * 1000 + b"\r\n"), False),
        (again_and_again(HEAD + b"X: ", b"a" * 65_536), False),
        (again_and_again(b"HTTP/1.1 200 ", b"a" * 65_536), False),
        (again_and_again(HEAD + b"\r\n", b"x" * 65_536), True),
        (again_and_again(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9000), True),
        (again_and_again(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65_536), True),
        (
            again_and_again(
                HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"\0" * 10_000_000)
            ),
            True,
        ),
        (once(HEAD + b"Content-Length: 1000\r\n\r\nabc", stays=True), True),
        (once(HEAD + b"Content-Length: 1000\r\n\r\nabc"), True),
        (once(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"), True),
        (once(HEAD + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\nabc"), False),
        (once(b"", stays=True), False),
        (once(b""), False),
        (once(b"\x00\xff\x16\x03garbage\r\n\r\n"), False),
        (once(b"hello"), False),
        (once(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", stays=True), False),
        (once(b"HTTP/1.1 000 X\r\n\r\n"), False),
        (once(b"HTTP/1.1 999 X\r\n\r\n"), False),
    ],
    ids=[
        *("100s", "103s", "headers", "header", "reason", "body", "chunks", "extension", "bomb"),
        *("slow", "short", "bad chunk", "two lengths", "nothing", "closed", "garbage", "no head"),
        *("switch", "zero", "999"),
    ],
)
async def test_server_that_answers_badly_holds_nothing(
    serve: Callable[[Write], Any], write: Write, is_delivered: bool
) -> None:
    host = await serve(write)
    delivery = HttpDelivery([host], allows_private=True, max_answer_bytes=65_536)
    order = claim({"url": f"http://{host}/"}, timeout_seconds=1)

    async with asyncio.timeout(2):
        with free_loop():
            if is_delivered:
                assert json.loads(kept(await delivery(order)) or "")["note"]
            else:
                with pytest.raises(NotDelivered):
                    await delivery(order)


async def test_answer_before_all_is_sent_counts(serve: Callable[[Write], Any]) -> None:
    host = await serve(once(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n", stays=True))
    delivery = HttpDelivery([host], allows_private=True, max_answer_bytes=100)

    with pytest.raises(Permanent, match="413"):
        await delivery(claim({"url": f"http://{host}/", "body": "x" * 5_000_000}))


@pytest.mark.parametrize("entry", ["", "https://example.com", "a b", "*", "example.com/x", "a@b"])
def test_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(entry))):
        Allowed([entry])


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(), st.sampled_from(["http://", "https://", "http:/", "HTTP://", ""]))
def test_any_url_leads_to_a_host_or_is_refused(host: str, path: str, scheme: str) -> None:
    try:
        target = Target.of(f"{scheme}{host}{path}")
    except WrongTarget:
        return
    assert re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]+", target.host)
    assert target.path.isascii()
    assert target.path.isprintable()
    assert " " not in target.path
