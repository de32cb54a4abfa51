"""`python -m ops.bench.peers`, from the top of the repository."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from ops.bench import report as own_report
from ops.bench.__main__ import RESULTS, Progress
from ops.bench.children import ROOT, BenchError
from ops.bench.measures import Bench
from ops.bench.peers import install, report
from ops.bench.peers.measures import OwnBench, PeerBench
from ops.bench.peers.registry import PEERS, Peer
from ops.bench.servers import PLACES, Options

# What a measure takes beside its load: processes' starts and ends, a backlog made or drained.
BESIDE_SECONDS = {"creates": 0.5, "lives": 3.0, "drain": 3.5}

# A round takes more than a minute, and the machine's mood does not last so long.
ECHO_EVERY = 3
"""Measures for each of the echo, which they are divided by."""

# One peer's, which the run outlives.
FAILURES = (BenchError, OSError, subprocess.SubprocessError)

Subjects = dict[str, tuple[Any, tuple[str, ...]]]
"""Each with who measures it, and which measures it has."""


@click.command()
@click.option("--seconds", default=2.0, show_default=True, help="How long each measure loads.")
@click.option("--rounds", default=3, show_default=True, help="How often each is measured.")
@click.option("--connections", default=256, show_default=True, help="Of the load, kept alive.")
@click.option("--only", default="", metavar="NAMES", help="These peers alone: celery,arq,…")
def main(seconds: float, rounds: int, connections: int, only: str) -> None:
    """Measure what people would pick instead, beside the service and a bare aiohttp echo.

    Installs what it needs below .venv-peers, the first time.
    """
    signal.signal(signal.SIGTERM, _stop)
    peers = _chosen(only)
    failed = _install(peers)
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=RESULTS) as folder:
        try:
            results = _measure(Path(folder), Options(seconds, connections), rounds, peers, failed)
        except BenchError as error:
            raise click.ClickException(str(error)) from None
    path = RESULTS / f"peers-{results['started_at'].replace(':', '')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(report.table(results))
    click.echo(f"\n{path.relative_to(ROOT)}", err=True)


def _chosen(only: str) -> list[Peer]:
    names = {name for name in only.split(",") if name}
    if unknown := names - {peer.name for peer in PEERS}:
        known = ", ".join(peer.name for peer in PEERS)
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: the peers are {known}")
    return [peer for peer in PEERS if not names or peer.name in names]


def _install(peers: list[Peer]) -> dict[str, str]:
    """What could not be installed, and why."""
    failed = {}
    for peer in peers:
        if not install.is_installed(peer):
            click.echo(f"Installing {peer.title}", err=True)
        try:
            install.install(peer)
        except BenchError as error:
            failed[peer.name] = str(error)
            click.echo(f"{peer.title}: {error}", err=True)
    return failed


def _measure(
    folder: Path, options: Options, rounds: int, peers: list[Peer], failed: dict[str, str]
) -> dict[str, Any]:
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    progress = Progress(_expected_seconds(options, rounds, peers))
    measured: list[report.Round] = []
    progress.say("starting PostgreSQL, Redis, the echo and the service")
    with Bench(folder, options, keeps_redis=True) as bench, ExitStack() as stack:
        subjects = _own(bench)
        for peer in peers:
            if peer.name in failed:
                continue
            progress.say(f"preparing {peer.name}")
            peer_bench = PeerBench(bench, peer, folder / peer.name)
            stack.callback(peer_bench.close)
            try:
                peer_bench.prepare()
            except FAILURES as error:
                failed[peer.name] = str(error)
            else:
                subjects[peer.name] = (peer_bench, _measures(peer))
        steps = [(name, measure) for name, (_, each) in subjects.items() for measure in each]
        # The HTTP measures of all, then the drains, so that like is measured beside like.
        steps.sort(key=lambda step: list(report.MEASURES).index(step[1]) // 2)
        for number in range(rounds):
            found: report.Round = {}
            # To and fro, so that whatever slows the machine down hits all alike.
            for step, (name, measure) in enumerate(steps if number % 2 == 0 else steps[::-1]):
                if step % ECHO_EVERY == 0:
                    progress.say(f"round {number + 1} of {rounds}: echo")
                    echo = bench.echo_creates()
                    found.setdefault("echo", {})[f"creates-{step}"] = echo
                if name in failed:
                    continue
                progress.say(f"round {number + 1} of {rounds}: {name}, {measure}")
                try:
                    one = getattr(subjects[name][0], measure)()
                except FAILURES as error:
                    failed[name] = f"{measure}: {error}"
                    progress.say(failed[name])
                else:
                    found.setdefault(name, {})[measure] = {**one, "echo_rate": echo["rate"]}
            measured.append(found)
        machine = own_report.machine(bench)
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
        "versions": {peer.name: _version(peer) for peer in peers if install.is_installed(peer)},
        "summary": report.summary(measured),
        "echo": report.echo_rates(measured),
        "failed": failed,
        "unexpected": report.unexpected(measured),
        "rounds": measured,
    }


def _own(bench: Bench) -> Subjects:
    return {
        "tasksvc": (
            OwnBench(bench, TASK_CONSUMER_CONCURRENCY=PLACES),
            ("creates", "lives", "drain"),
        ),
        "tasksvc-default": (OwnBench(bench), ("drain",)),
    }


def _measures(peer: Peer) -> tuple[str, ...]:
    over_http = ("creates", "lives") if peer.over_http else ()
    return (*over_http, *(("drain",) if peer.as_library else ()))


def _expected_seconds(options: Options, rounds: int, peers: list[Peer]) -> float:
    measures = ["creates", "lives", "drain", "drain"]
    measures += [measure for peer in peers for measure in _measures(peer)]
    each_round = sum(options.seconds + BESIDE_SECONDS[measure] for measure in measures)
    return (
        10 + 2 * len(peers) + rounds * (each_round + len(measures) / ECHO_EVERY * options.seconds)
    )


def _version(peer: Peer) -> str:
    try:
        return install.version(peer)
    except (BenchError, OSError):
        return ""


def _stop(*_: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    main(prog_name="python -m ops.bench.peers")
