"""The kind `http`: what is sent, what an answer means, and where no task may go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tasksvc.domain.retry import Permanent, Retry
from tasksvc.domain.task import Claim
from tasksvc.handlers.http import HttpDelivery, NotDelivered, is_public
from tests.harness import eventually


class Receiver:
    """A server that keeps what it is sent, and answers as the test wants."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], str]] = []
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({"ok": True})
        self.gone = asyncio.Event()
        self.waits = False
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.text()))
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


async def deliver(delivery: HttpDelivery, receiver: Receiver, **order: Any) -> Any:
    return await delivery(claim({"url": f"http://{receiver.host}/hook?a=b", **order}))


async def test_body_and_headers_arrive(delivery: HttpDelivery, receiver: Receiver) -> None:
    result = await deliver(
        delivery, receiver, headers={"x-shop": "7", "content-type": "text/plain"}, body="hello"
    )

    assert result == {"ok": True}
    ((headers, body),) = receiver.requests
    assert body == "hello"
    assert headers["X-Shop"] == "7"
    assert headers["Content-Type"] == "text/plain"
    assert headers["Tasksvc-Task-Id"] == headers["Idempotency-Key"] == "an-id"
    assert headers["Tasksvc-Attempt"] == "2"
    assert headers["User-Agent"] == "tasksvc"


async def test_body_that_is_no_text_is_sent_as_json(
    delivery: HttpDelivery, receiver: Receiver
) -> None:
    await deliver(delivery, receiver, body={"a": [1, None]})

    ((headers, body),) = receiver.requests
    assert (headers["Content-Type"], body) == ("application/json", '{"a":[1,null]}')


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (lambda: web.json_response([1]), [1]),
        (lambda: web.Response(text="done ü", status=202), "done ü"),
        (lambda: web.Response(status=204), None),
        (lambda: web.Response(body=b"\xff", content_type="text/plain"), "�"),
    ],
)
async def test_answer_is_the_result(
    delivery: HttpDelivery, receiver: Receiver, answer: Any, result: Any
) -> None:
    receiver.answer = answer

    assert await deliver(delivery, receiver) == result


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
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 3600),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
    ],
    ids=["seconds", "now", "too long", "date", "past"],
)
async def test_retry_after_is_respected(
    delivery: HttpDelivery, receiver: Receiver, value: str, seconds: float
) -> None:
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


async def test_answer_is_bounded(delivery: HttpDelivery, receiver: Receiver) -> None:
    receiver.answer = lambda: web.Response(text="x" * 101)

    with pytest.raises(Permanent, match="more than 100 bytes"):
        await deliver(delivery, receiver)


async def test_answer_that_is_no_json_though_it_says_so(
    delivery: HttpDelivery, receiver: Receiver
) -> None:
    receiver.answer = lambda: web.Response(text="{", content_type="application/json")

    with pytest.raises(Permanent, match="says that it is JSON"):
        await deliver(delivery, receiver)


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
    ],
)
async def test_host_that_is_not_allowed(
    make_delivery: Callable[..., HttpDelivery], allowed: str, url: str
) -> None:
    with pytest.raises(Permanent, match=r"not allowed|without a user"):
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
    ],
)
def test_host_that_is_allowed(
    make_delivery: Callable[..., HttpDelivery], allowed: str, url: str
) -> None:
    delivery = HttpDelivery([allowed], allows_private=True, max_answer_bytes=1)

    assert str(delivery._url(url)) == url.replace("EXAMPLE", "example").replace(":443", "")


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
        "2130706433",
        "0x7f.1",
    ],
)
async def test_private_address_is_refused_by_any_name(
    receiver: Receiver, make_delivery: Callable[..., HttpDelivery], host: str
) -> None:
    delivery = make_delivery(f"{host.strip('[]')}:{receiver.port}", allows_private=False)

    with pytest.raises(Permanent, match=r"address is not allowed|none that can be asked"):
        await delivery(claim({"url": f"http://{host}:{receiver.port}/"}))
    assert receiver.requests == []


async def test_name_that_leads_to_a_private_address_among_others_is_refused(
    receiver: Receiver,
    make_delivery: Callable[..., HttpDelivery],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And each connection asks anew: a name that changes its mind is no way in."""

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        return [
            {"hostname": host, "host": address, "port": port, "family": 2, "proto": 0, "flags": 0}
            for address in ("93.184.216.34", "127.0.0.1")
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    delivery = make_delivery(f"rebind.example:{receiver.port}", allows_private=False)

    with pytest.raises(Permanent, match="address is not allowed"):
        await delivery(claim({"url": f"http://rebind.example:{receiver.port}/"}))
    assert receiver.requests == []
