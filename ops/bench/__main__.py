"""`python -m ops.bench`, from the top of the repository."""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from ops.bench import costs, growth, growth_report, latency, report, stores
from ops.bench.children import ROOT, BenchError
from ops.bench.measures import Bench
from ops.bench.report import Round
from ops.bench.servers import Options

RESULTS = ROOT / "bench-results"

# Alternately to and fro, so that whatever slows the machine down hits all alike. pgbench is between
# two that tell no CPU time: PostgreSQL is charged with that of its sessions once they have ended.
ORDER = (
    "drain",
    "pgbench",
    "redis_benchmark",
    "echo_creates",
    "creates",
    "creates_with_options",
    "lives",
    "lives_with_options",
    "echo_reads",
    "reads_pending",
    "reads_final",
)

BESIDE_ROUNDS_SECONDS = 45.0
"""What takes its time however long the rounds are."""

GROWTH_ROUNDS = 3
"""At most: each takes more than two minutes."""

STARTS = 3
WAITS = 200
CANCELS = 200
IDLE_SECONDS = 10.0
WARM_UP_SECONDS = 0.5
WARM_UP_BACKLOG = 1000
BESIDE_SECONDS = 0.4
"""What a measure takes beside its load: its generator's start, a backlog to drain."""


class Progress:
    """One line that says what is being measured, and how far the run is."""

    def __init__(self, expected_seconds: float) -> None:
        self._started_at = time.monotonic()
        self._expected_seconds = expected_seconds

    def say(self, what: str) -> None:
        passed = time.monotonic() - self._started_at
        line = f"[{passed:3.0f} s of about {self._expected_seconds:.0f}] {what}"
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{line}", nl=False, err=True)
        else:
            click.echo(line, err=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="How long each measure loads.")
@click.option("--rounds", default=5, show_default=True, help="How often each is measured.")
@click.option("--connections", default=256, show_default=True, help="Of the load, kept alive.")
@click.option("--full", is_flag=True, help="Also how the cost grows: takes about 20 minutes.")
@click.option(
    "--finished",
    default=10_000_000,
    show_default=True,
    help="Tasks that are finished before, with --full.",
)
def main(seconds: float, rounds: int, connections: int, full: bool, finished: int) -> None:
    """Measure the service beside a bare aiohttp echo, on loopback, with servers of its own."""
    signal.signal(signal.SIGTERM, _stop)
    RESULTS.mkdir(exist_ok=True)
    # Beside the results rather than in /tmp, which may be memory: fsync has to cost what it costs.
    with tempfile.TemporaryDirectory(prefix="run-", dir=RESULTS) as folder:
        try:
            results = _measure(
                Path(folder), Options(seconds, connections), rounds, finished if full else 0
            )
        except BenchError as error:
            raise click.ClickException(str(error)) from None
    path = RESULTS / f"{results['started_at'].replace(':', '')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(report.table(results))
    if full:
        click.echo("\n" + growth_report.tables(results["growth"]))
    click.echo(f"\n{path.relative_to(ROOT)}", err=True)


def _measure(folder: Path, options: Options, rounds: int, finished: int) -> dict[str, Any]:
    """Of finished tasks 0: without the growth."""
    missing = stores.missing()
    forth = tuple(name for name in ORDER if name not in missing)
    step_seconds = options.seconds + BESIDE_SECONDS
    expected = BESIDE_ROUNDS_SECONDS + 3 * options.seconds
    expected += rounds * (len(forth) * step_seconds + 3)
    if finished:
        expected += growth.expected_seconds(finished, min(rounds, GROWTH_ROUNDS), options.seconds)
    progress = Progress(expected)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    measured: list[Round] = []
    progress.say("starting PostgreSQL, Redis, the echo and the service")
    with Bench(folder, options) as bench:
        # First, while the machine is idle indeed: PostgreSQL works on after a load.
        progress.say("waits from create to start")
        waits = latency.idle_wait(bench, WAITS)
        progress.say("warming up")
        bench.options = Options(WARM_UP_SECONDS, options.connections, WARM_UP_BACKLOG)
        _round(bench, forth, lambda name: None)
        bench.options = options
        for number in range(rounds):
            order = forth if number % 2 == 0 else forth[::-1]
            measured.append(
                _round(
                    bench,
                    order,
                    lambda name, number=number: progress.say(
                        f"round {number + 1} of {rounds}: {name.replace('_', ' ')}"
                    ),
                )
            )
        summary = report.summary(measured)
        top_rate = summary["creates"]["rate"]
        progress.say("creates at half the top rate")
        paced = latency.paced_creates(bench, top_rate / 2, 2 * options.seconds)
        progress.say("cancels")
        cancels = latency.cancels(bench, CANCELS)
        progress.say("bytes of a life")
        disk = costs.on_disk(bench)
        loaded_bytes = max(bench.taking.peak_resident_bytes, bench.working.peak_resident_bytes)
        progress.say("memory at rest, time to ready")
        bench.start()  # makes its consumer group
        starts = [bench.start() for _ in range(STARTS)]
        progress.say("statements of an idle service")
        idle = bench.idle_statements(IDLE_SECONDS)
        machine = report.machine(bench)
        grown = (
            growth.measure(bench, finished, min(rounds, GROWTH_ROUNDS), progress.say)
            if finished
            else None
        )
        progress.say("stopping")
    progress.end()
    return {
        "started_at": started_at,
        "options": {
            "seconds": options.seconds,
            "rounds": rounds,
            "connections": options.connections,
            "load": "closed loop",
        },
        "machine": machine,
        "summary": summary,
        "beside": {
            "idle_wait": waits,
            "cancel": cancels,
            "paced_creates": paced,
            "on_disk": disk,
            "loaded_resident_bytes": loaded_bytes,
            "resident_bytes": statistics.median(each["resident_bytes"] for each in starts),
            "ready_seconds": statistics.median(each["seconds"] for each in starts),
            "idle_statements_a_second": idle["a_second"],
        },
        "unexpected": report.unexpected(
            [*measured, {"paced_creates": paced}, *(growth.loads(grown) if grown else ())]
        ),
        "rounds": measured,
        **({"growth": grown} if grown else {}),
    }


def _round(bench: Bench, order: tuple[str, ...], say: Any) -> Round:
    found = {}
    for name in order:
        say(name)
        found[name] = getattr(bench, name)()
    return found


def _stop(*_: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    main(prog_name="python -m ops.bench")
