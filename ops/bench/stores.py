"""What the stores do alone, by their own programs: a row for each commit, an entry for each call.

The programs belong to the stores' packages, and may be missing.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from urllib.parse import urlsplit
from uuid import uuid4

import redis

from ops.bench.children import BenchError
from ops.bench.load import CONTENT_BYTES, content
from ops.bench.servers import Found, Servers
from tasksvc.embedded.binaries import find_postgres

ROW_CLIENTS = 16
"""On two cores 8 to 64 come to about the same. With fewer, too few share a flush of the log."""

ENTRY_CLIENTS = 50
"""The program's own default."""

_TABLE = "CREATE TABLE IF NOT EXISTS single (id uuid PRIMARY KEY, content text NOT NULL)"
_INSERT = "INSERT INTO single VALUES (gen_random_uuid(), :content);"

_STREAM = "bench_single"
_TRIAL = 5000
"""Entries that tell how many make the seconds: the program takes no time, but a number."""

_END_SECONDS = 60.0

_TPS = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_MILLISECONDS = re.compile(r"^latency average = ([\d.]+) ms$", re.MULTILINE)


def missing() -> set[str]:
    """The measures whose programs are not here."""
    programs = {"pgbench": _pgbench(), "redis_benchmark": _redis_benchmark()}
    return {name for name, program in programs.items() if program is None}


def pgbench(bench: Servers) -> Found:
    """One row a commit, prepared, over PostgreSQL's Unix socket; for whole seconds alone."""
    bench.query(_TABLE)
    bench.query("TRUNCATE single")
    return read_pgbench(
        _run(
            [
                str(_pgbench()),
                *("--no-vacuum", "--protocol=prepared", "--file=-"),
                f"--client={ROW_CLIENTS}",
                f"--time={max(1, round(bench.options.seconds))}",
                f"--define=content={content(CONTENT_BYTES)}",
                bench.postgres.url,
            ],
            _INSERT,
            bench.options.seconds,
        )
    )


def redis_benchmark(bench: Servers) -> Found:
    """One XADD of a field like ours a call, each client's next when it has its answer."""
    trial = _add(bench, _TRIAL)
    return _add(bench, max(_TRIAL, round(trial["rate"] * bench.options.seconds)))


def read_pgbench(output: str) -> Found:
    """What pgbench found, of what it printed."""
    rate, latency = _TPS.search(output), _MILLISECONDS.search(output)
    if rate is None or latency is None:
        raise BenchError(f"pgbench says: {output.strip()[-200:]}")
    return {"rate": float(rate[1]), "average_ms": float(latency[1]), "unexpected": {}}


def read_redis_benchmark(output: str) -> Found:
    """What redis-benchmark found, of what it printed as CSV."""
    rows = list(csv.DictReader(output.splitlines()))
    try:
        (row,) = rows
        return {
            "rate": float(row["rps"]),
            "p50_ms": float(row["p50_latency_ms"]),
            "p99_ms": float(row["p99_latency_ms"]),
            "unexpected": {},
        }
    except (ValueError, KeyError):
        raise BenchError(f"redis-benchmark says: {output.strip()[-200:]}") from None


def _add(bench: Servers, count: int) -> Found:
    try:
        return read_redis_benchmark(
            _run(
                [
                    str(_redis_benchmark()),
                    *("-p", str(urlsplit(bench.redis_url).port)),
                    *("-c", str(ENTRY_CLIENTS), "-n", str(count), "--csv", "--precision", "3"),
                    *("XADD", _STREAM, "*", "id", str(uuid4())),
                ],
                "",
                bench.options.seconds,
            )
        )
    finally:
        with redis.Redis.from_url(bench.redis_url) as client:
            client.unlink(_STREAM)


def _run(arguments: list[str], given: str, seconds: float) -> str:
    done = subprocess.run(
        arguments, input=given, capture_output=True, text=True, timeout=seconds + _END_SECONDS
    )
    if done.returncode:
        raise BenchError(f"{arguments[0]} failed: {done.stderr.strip()[-200:]}")
    return done.stdout


def _pgbench() -> str | None:
    """The one beside the server, or else on PATH."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("pgbench", path=f"{find_postgres().folder}{os.pathsep}{path}")


def _redis_benchmark() -> str | None:
    return shutil.which("redis-benchmark")
