"""The bench's own arithmetic and its load, against a server that misbehaves on purpose."""

import asyncio
import re

import pytest
from msgspec.structs import asdict

from ops.bench import load, options, paced, report, stores
from ops.bench.children import BenchError
from tasksvc.web.schemas.tasks import load_task_create


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, 0.0), ([1.0], 99, 1.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), ([1.0, 2.0], 99, 2.0)],
)
def test_percentile(values, percent, expected):
    assert load.percentile(values, percent) == expected


def test_a_request_says_how_long_it_is():
    head, _, body = load.post(b'{"content":"x"}').partition("\r\n\r\n")

    assert f"Content-Length: {len(body)}" in head.splitlines()


def test_each_number_is_another_and_as_long():
    requests = load.endless([b"plain", f"{load.NUMBER} and {load.NUMBER}".encode()])

    first, second, third, fourth = (next(requests) for _ in range(4))

    assert first == third == b"plain"
    one, other = (set(re.findall(rb"\d{%d}" % len(load.NUMBER), each)) for each in (second, fourth))
    assert len(one) == len(other) == 1
    assert one != other


def test_all_options_are_given_but_those_that_make_a_task_wait():
    request = options.create_with_options()
    head, _, body = request.partition("\r\n\r\n")

    given = load_task_create(body.encode()).options

    left_out = {name for name, value in asdict(given).items() if value is None}
    assert left_out == {"delay_seconds", "run_at"}
    assert f"Idempotency-Key: {given.unique_key}" in head.splitlines()
    assert load.NUMBER in given.unique_key
    assert options.create_with_options() != request


PGBENCH = """\
pgbench (18.6)
transaction type: -
scaling factor: 1
query mode: prepared
number of clients: 16
number of threads: 1
maximum number of tries: 1
duration: 1 s
number of transactions actually processed: 6108
number of failed transactions: 0 (0.000%)
latency average = 0.641 ms
initial connection time = 23.999 ms
tps = 6242.277634 (without initial connection time)
"""

REDIS_BENCHMARK = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
    '"p99_latency_ms","max_latency_ms"\n'
    '"XADD bench_single * id 0193a0b0-7b1c-7c3e-8d4f-0123456789ab","42301.18","0.796","0.168",'
    '"0.751","1.367","1.887","3.807"\n'
)


def test_reads_what_pgbench_found():
    found = stores.read_pgbench(PGBENCH)

    assert found == {"rate": 6242.277634, "average_ms": 0.641, "unexpected": {}}


def test_reads_what_redis_benchmark_found():
    found = stores.read_redis_benchmark(REDIS_BENCHMARK)

    assert found == {"rate": 42301.18, "p50_ms": 0.751, "p99_ms": 1.887, "unexpected": {}}


@pytest.mark.parametrize("output", ["", "Could not connect\n", '"test","rps"\n"XADD","42"\n'])
@pytest.mark.parametrize("read", [stores.read_pgbench, stores.read_redis_benchmark])
def test_says_what_it_can_not_read(read, output):
    with pytest.raises(BenchError, match=f"says: {re.escape(output.strip())}"):
        read(output)


async def measure(answer: bytes, *, status: int = 201) -> dict:
    """What the load says of a server that always answers this, in two pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(answer[:20])
            await asyncio.sleep(0)
            writer.write(answer[20:])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        shared = load.Load([load.get("1").encode()], status)
        return await load.run([server.sockets[0].getsockname()[1]], 2, 0.2, shared)


async def test_counts_whole_answers():
    found = await measure(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")

    assert found["answers"] > 2
    assert found["unexpected"] == {}
    assert 0 < found["p50_ms"] <= found["p99_ms"]


async def test_reports_a_status_that_was_not_expected():
    found = await measure(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n")

    assert found["answers"] == 0
    assert found["unexpected"]["status 503"] > 0


async def test_reports_an_answer_without_a_length():
    found = await measure(b"HTTP/1.1 201 Created\r\nConnection: close\r\n\r\n")

    assert found["unexpected"]["an answer without a length"] == 2


def found_of(rate: float) -> dict:
    cpu = {"server": 1.0, "postgres": 1.0, "redis": 1.0}
    return {"rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "unexpected": {"x": 1}, "cpu": cpu}


def round_of(echo: float, service: float, **others: float) -> dict:
    rates = dict.fromkeys([*report.MEASURES, *report.WITH_OPTIONS], service)
    rates |= {"echo_creates": echo, "echo_reads": echo, **others}
    return {name: found_of(rate) for name, rate in rates.items()}


def test_a_ratio_is_to_the_echo_of_its_own_round():
    rounds = [round_of(100, 80), round_of(10, 6), round_of(50, 35)]

    creates = report.summary(rounds)["creates"]

    assert (creates["lowest"], creates["ratio"], creates["highest"]) == (0.6, 0.7, 0.8)
    assert report.unexpected(rounds)["creates: x"] == 3


def test_options_are_beside_plain_tasks_of_their_own_round():
    rounds = [round_of(1, 100, lives_with_options=80), round_of(1, 10, lives_with_options=9)]

    lives = report.summary(rounds)["lives_with_options"]

    assert (lives["lowest"], lives["highest"]) == (0.8, 0.9)


def test_a_store_alone_is_shown_or_said_to_be_missing():
    lines = report.beside_stores(report.summary([round_of(1, 15_000, pgbench=10_000)] * 3))

    *_, pgbench, redis_benchmark = lines
    assert "| 10,000 | **1.50** (1.50–1.50) |" in pgbench
    assert "| not installed | – |" in redis_benchmark
    assert len({line.count("|") for line in lines}) == 1


async def test_an_open_loop_counts_the_wait_for_a_connection():
    """A closed loop would find 20 ms each, however much work is left to wait."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        pace = paced.Pace([load.get("1").encode()], 200)
        found = await paced.run([server.sockets[0].getsockname()[1]], 1, 0.3, 100, pace)

    assert found["answers"] == 30
    assert found["unexpected"] == {}
    assert found["p50_ms"] > 100
    assert found["p99_ms"] > 250


async def test_an_open_loop_ends_when_all_connections_are_lost():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        pace = paced.Pace([load.get("1").encode()], 200)
        found = await paced.run([server.sockets[0].getsockname()[1]], 2, 0.3, 100, pace)

    assert found["answers"] == 0
    assert found["unexpected"]["a lost connection"] == 2
