"""What was found: ratios, a table for people, JSON for later."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from ops.bench import stores
from ops.bench.children import ROOT
from ops.bench.measures import Bench
from ops.bench.servers import Found

MEASURES = {
    "creates": ("durable creates", "echo_creates"),
    "lives": ("whole lives", "echo_creates"),
    "drain": ("drain of a backlog", "echo_creates"),
    "reads_pending": ("reads of a pending task", "echo_reads"),
    "reads_final": ("reads of a final task", "echo_reads"),
}
"""Each with its words, and what it is divided by."""

WITH_OPTIONS = {
    "creates_with_options": ("durable creates", "creates"),
    "lives_with_options": ("whole lives", "lives"),
}
"""The same for tasks with all options, beside plain ones."""

STORES = {
    "pgbench": f"`pgbench`: a row a commit, {stores.ROW_CLIENTS} clients",
    "redis_benchmark": f"`redis-benchmark`: an `XADD` a call, {stores.ENTRY_CLIENTS} clients",
}
"""What the stores do alone, in words."""

BESIDE_STORES = ("creates", "lives", "drain")
"""What is divided by each of them, too."""

_FIGURES = {
    "p50_ms": "{:.1f}",
    "p99_ms": "{:.1f}",
    "server_cpu_us": "{:.0f}",
    "postgres_cpu_us": "{:.0f}",
    "redis_cpu_us": "{:.0f}",
}
"""The rest of a row: each with its form."""

Round = dict[str, Found]


def machine(bench: Bench) -> dict[str, Any]:
    """What the numbers depend on beside the service."""
    with redis.Redis.from_url(bench.redis_url) as client:
        redis_version = client.info("server")["redis_version"]
    ((postgres_version,),) = bench.query("SHOW server_version")
    ((fsync,),) = bench.query("SHOW fsync")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": postgres_version,
        "fsync": fsync,
        "redis": redis_version,
        "commit": _commit(),
    }


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """For each measure the median and the spread of its ratios, each to its own round's reference.

    What the stores do alone is missing where their programs are."""
    found: dict[str, Any] = {}
    for name, (_, reference) in (MEASURES | WITH_OPTIONS).items():
        found[name] = _spread(rounds, name, reference) | _medians(rounds, name)
    for name in {reference for _, reference in MEASURES.values()}:
        found[name] = _medians(rounds, name)
    for name in STORES:
        if all(name in each for each in rounds):
            beside = {other: _spread(rounds, other, name) for other in BESIDE_STORES}
            found[name] = {**_medians(rounds, name), "beside": beside}
    return found


def unexpected(rounds: Sequence[Round]) -> dict[str, int]:
    """What the load was answered that it should not have been."""
    found: dict[str, int] = {}
    for each in rounds:
        for name, measured in each.items():
            for what, count in measured["unexpected"].items():
                found[f"{name}: {what}"] = found.get(f"{name}: {what}", 0) + count
    return found


def table(results: dict[str, Any]) -> str:
    """The results, as a Markdown table and a few lines."""
    found = results["summary"]
    lines = [
        "| | ratio to the echo, median (spread) | a second | p50 ms | p99 ms "
        "| CPU µs each: service | PostgreSQL | Redis |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (words, _) in MEASURES.items():
        lines.append(f"| {words} | {_ratio(found[name])} | {_row(found[name])} |")
    for name, words in (("echo_creates", "echo of a create"), ("echo_reads", "echo of a read")):
        lines.append(f"| {words} | 1 | {_row(found[name])} |")
    lines += [
        "",
        *_with_options(found),
        "",
        *beside_stores(found),
        "",
        *_beside(results["beside"]),
        "",
        " · ".join(f"{name} {value}" for name, value in results["machine"].items()),
    ]
    for what, count in results["unexpected"].items():
        lines.append(f"UNEXPECTED: {what}, {count} times")
    return "\n".join(lines)


def beside_stores(found: dict[str, Any]) -> list[str]:
    """The stores alone, and what the service makes of them."""
    words = [MEASURES[name][0] for name in BESIDE_STORES]
    lines = [
        f"| the stores alone | a second | {' | '.join(f'{each}: ratio' for each in words)} |",
        f"|---|---|{'---|' * len(words)}",
    ]
    for name, title in STORES.items():
        if name in found:
            ratios = [_ratio(found[name]["beside"][other]) for other in BESIDE_STORES]
            cells = [f"{found[name]['rate']:,.0f}", *ratios]
        else:
            cells = ["not installed", *("–" for _ in words)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _with_options(found: dict[str, Any]) -> list[str]:
    return [
        "| with all options | ratio to plain ones, median (spread) | a second | p50 ms | p99 ms "
        "| CPU µs each: service | PostgreSQL | Redis |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {words} | {_ratio(found[name])} | {_row(found[name])} |"
            for name, (words, _) in WITH_OPTIONS.items()
        ),
    ]


def _beside(beside: dict[str, Any]) -> list[str]:
    """What was measured once."""
    wait, cancel, disk = beside["idle_wait"], beside["cancel"], beside["on_disk"]
    paced = beside["paced_creates"]
    rows = {
        "wait from create to the handler's start, idle": f"{_percentiles(wait)}:"
        f" **{wait['commits']:.1f}** times one row committed ({wait['commit_p50_ms']:.2f} ms);"
        f" its answer after {wait['answer_p50_ms']:.2f} ms",
        "the same from its `created_at`": f"p50 {wait['since_created_p50_ms']:.2f} ms:"
        f" **{wait['commits_since_created']:.1f}** times",
        "cancel, idle": _percentiles(cancel),
        f"create at half the top rate, {paced['asked_rate']:,.0f} a second": _percentiles(paced),
        "resident memory": f"at rest {beside['resident_bytes'] / 1e6:.0f} MB, under load at most"
        f" {beside['loaded_resident_bytes'] / 1e6:.0f} MB",
        "bytes of a life": f"{disk['wal_bytes']:,.0f} of WAL, {disk['table_bytes']:,.0f} of table"
        " and indexes",
        "from start to ready, beside warm servers": f"{beside['ready_seconds']:.2f} s",
        "SQL statements of an idle service": f"{beside['idle_statements_a_second']:.2f} a second",
    }
    return ["| | once |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _percentiles(found: Found) -> str:
    names = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p99_9_ms"}
    return ", ".join(f"{name} {found[key]:.2f} ms" for name, key in names.items() if key in found)


def _row(found: dict[str, float]) -> str:
    """A drain has no latency, and its CPU time would hold the service's start."""
    cells = [f"{found['rate']:,.0f}"]
    for name, form in _FIGURES.items():
        cells.append(form.format(found[name]) if name in found else "–")
    return " | ".join(cells)


def _ratio(found: dict[str, float]) -> str:
    return f"**{found['ratio']:.2f}** ({found['lowest']:.2f}–{found['highest']:.2f})"


def _spread(rounds: Sequence[Round], name: str, reference: str) -> dict[str, float]:
    ratios = [each[name]["rate"] / each[reference]["rate"] for each in rounds]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _medians(rounds: Sequence[Round], name: str) -> dict[str, float]:
    all_found = [each[name] for each in rounds]
    found: dict[str, float] = {}
    for figure in ("rate", "p50_ms", "p99_ms"):
        if figure in all_found[0]:
            found[figure] = statistics.median(each[figure] for each in all_found)
    for process in all_found[0].get("cpu", ()):
        found[f"{process}_cpu_us"] = statistics.median(each["cpu"][process] for each in all_found)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit, with a `+` when the tree is not as it was committed."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + (
            "+" if _git("status", "--porcelain", "--", "tasksvc", "migrations") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
