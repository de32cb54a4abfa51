"""`make chaos`: clients, a nemesis and a checker, for a given time and from a given seed.

SEED=7 SECONDS=300 FAULTS=redis,service.kill make chaos
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from tests.faults import nemesis
from tests.faults.checker import check
from tests.faults.client import Client, OnceKeys
from tests.faults.evidence import drain, footprints, gather, largest, sample, settle
from tests.faults.fault import FAULTS, Scene
from tests.faults.history import (
    Evidence,
    Injection,
    Operation,
    Recovery,
    Sample,
    Seen,
    clocks_jumped,
    story,
)
from tests.faults.waiting import Stopwatch
from tests.faults.world import Clocks, World

CLIENTS = 8
_SCHEDULES = 3
"""Each is due every minute."""
RECOVERY_SECONDS = 20.0
"""A probe is given up after so long."""


@dataclass(frozen=True)
class Plan:
    """What a run is made from; the same plan draws the same faults."""

    seed: int
    seconds: float
    faults: str
    services: int = 2
    clients: int = CLIENTS
    quiet_seconds: float = 2.0
    """The least and about the usual pause between two faults."""


class Run:
    """One run of a plan in a world."""

    def __init__(self, plan: Plan, world: World, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._world = world
        self._say = say
        self._started = time.monotonic()
        self._operations: list[Operation] = []
        self._samples: list[Sample] = []
        self._injected: Counter[str] = Counter()
        self._seen = Seen()
        self._recoveries: list[Recovery] = []
        self._probes = itertools.count()

    def go(self) -> Evidence:
        """What there is to check, after all is healed and drained."""
        urls = [service.url for service in self._world.services]
        once_keys = OnceKeys(self._plan.seed)
        clients = [
            Client(number, urls, self._plan.seed, once_keys, self._operations)
            for number in range(1, self._plan.clients + 1)
        ]
        over = threading.Event()
        for number in range(_SCHEDULES):
            schedule = {"cron": "* * * * *", "task": {"content": "{}"}}
            self._world.put(f"/schedules/{number}", schedule)

        async def load() -> None:
            await asyncio.gather(*(client.run(over.is_set) for client in clients))

        loading = threading.Thread(target=lambda: asyncio.run(load()))
        loading.start()
        try:
            self._samples = sample(self._world, 1.5)
            footprint = largest(footprints(self._world))
            self._break_things()
        finally:
            over.set()
            loading.join()
            self._tell("heals everything")
            nemesis.heal(self._world)
        drain(self._world, self._tell)
        settle(self._world, footprint)
        return gather(
            self._world,
            footprint=footprint,
            seen=self._seen,
            operations=self._operations,
            samples=self._samples,
            recoveries=self._recoveries,
            answers="\n".join(text for client in clients for text in client.said),
            clocks_jumped=clocks_jumped(self._injected),
        )

    def _break_things(self) -> None:
        chance = random.Random(self._plan.seed)
        names = nemesis.chosen(self._plan.faults, self._world)
        deck: list[str] = []
        while time.monotonic() - self._started < self._plan.seconds:
            if not deck:  # every fault has its turn before one comes again
                deck = names.copy()
                chance.shuffle(deck)
            name = deck.pop()
            self._tell(f"breaks {name}")
            started = time.time()
            FAULTS[name](Scene(self._world, chance, seen=self._seen))
            if not self._seen.knows(name, started):
                self._seen.injections.append(Injection(name, started, time.time()))
            nemesis.heal(self._world)
            self._injected[name] += 1
            self._recoveries.append(Recovery(name, self._recover()))
            time.sleep(chance.uniform(self._plan.quiet_seconds / 2, self._plan.quiet_seconds))

    def _recover(self) -> float:
        """The seconds until a task is created and completed again, of a machine that has nothing
        else to do."""
        watch = Stopwatch(self._pids())
        while (seconds := watch.seconds(self._pids())) < RECOVERY_SECONDS:
            try:
                if self._probe():
                    return watch.seconds(self._pids())
            except OSError:  # not yet
                time.sleep(0.02)
        return seconds

    def _pids(self) -> list[int]:
        return [service.process.pid for service in self._world.services]

    def _probe(self) -> bool:
        """One task from a client of its own, to its end; False when it's refused."""
        service = self._world.services[0]
        key = f"probe-{next(self._probes)}"
        content = json.dumps({"content": json.dumps({"key": key})}).encode()
        started = time.time()
        headers = {"Content-Type": "application/json"}
        code, _, body = service.request("POST", "/task", content, headers)
        id = json.loads(body)["id"] if code == 201 else None
        self._operations.append(Operation(0, "create", key, id, started, time.time(), code))
        if id is None:
            time.sleep(0.02)
            return False
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            code, _, body = service.get(f"/task/{id}")
            if code == 200 and json.loads(body)["status"] == "completed":
                return True
            time.sleep(0.01)
        return False

    def summary(self) -> str:
        codes = Counter((o.verb, o.code) for o in self._operations)
        told = ", ".join(
            f"{verb} {code}: {n}" for (verb, code), n in sorted(codes.items(), key=str)
        )
        return f"{sum(self._injected.values())} faults; {told}"

    def _tell(self, text: str) -> None:
        self._say(f"[{time.monotonic() - self._started:6.1f} s] {text}")


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> tuple[Evidence, str]:
    """The evidence of one run, and a line about it."""
    clocks = Clocks(folder) if "clock" in plan.faults else None
    with World(folder, plan.services, clocks=clocks) as world:
        run = Run(plan, world, say)
        evidence = run.go()
        return evidence, run.summary()


def keep(evidence: Evidence, folder: Path) -> Path:
    """Writes all of it down for the analysis."""
    path = folder / "evidence.jsonl"
    with path.open("w") as file:
        for kind in ("operations", "events", "lapses", "effects", "rows", "attempts"):
            for each in getattr(evidence, kind):
                file.write(json.dumps({"kind": kind, **asdict(each)}) + "\n")
    return path


def recovery_table(evidence: Evidence) -> str:
    """Each fault with the median and the longest recovery after it, in Markdown."""
    seconds: dict[str, list[float]] = {}
    for recovery in evidence.recoveries:
        seconds.setdefault(recovery.fault, []).append(recovery.seconds)
    rows = [
        f"| {fault} | {len(each)} | {statistics.median(each):.2f} | {max(each):.2f} |"
        for fault, each in sorted(seconds.items())
    ]
    return "\n".join(["| fault | times | median s | longest s |", "|---|---|---|---|", *rows])


@click.command()
@click.option("--seed", envvar="SEED", type=int, default=None, help="Draws the faults.")
@click.option("--seconds", envvar="SECONDS", default=60.0, show_default=True)
@click.option("--faults", envvar="FAULTS", default="*", show_default=True)
@click.option("--services", envvar="SERVICES", default=2, show_default=True)
def main(seed: int | None, seconds: float, faults: str, services: int) -> None:
    """Break everything, and check that no promise was broken."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    click.echo(f"SEED={seed} SECONDS={seconds:g} FAULTS={faults} SERVICES={services}")
    with tempfile.TemporaryDirectory(prefix="tasksvc-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        evidence, summary = run(Plan(seed, seconds, faults, services), folder, click.echo)
        violations = check(evidence)
        click.echo(f"{summary}; {len(evidence.rows)} tasks")
        click.echo(recovery_table(evidence))
        if not violations:
            click.secho("Every invariant held.", fg="green")
            return
        for violation in violations[:20]:
            click.secho(str(violation), fg="red")
        told = next((violation.id for violation in violations if violation.id), None)
        if told:
            click.echo("\n".join([f"The history of {told}:", *story(evidence, told)]))
        target = Path(os.environ.get("EVIDENCE_DIR", "bench-results"))
        target.mkdir(exist_ok=True)
        kept = keep(evidence, target)
        (target / "services.log").write_text(evidence.logs)
        click.echo(f"{len(violations)} violations; all is in {kept}. Again: SEED={seed} make chaos")
        sys.exit(1)


if __name__ == "__main__":
    main()
