"""Compares two source trees in turn on the same servers: `python -m ops.bench.compare A B`."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from ops.bench import backlog
from ops.bench.children import Child
from ops.bench.measures import CREATE
from ops.bench.servers import DRAINING, Found, Options, Servers

DRAINS = 3

Ratios = dict[str, list[float]]


@click.command()
@click.argument("trees", nargs=2, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=8, show_default=True)
@click.option("--seconds", default=1.5, show_default=True, help="Of each load.")
def main(trees: tuple[Path, Path], rounds: int, seconds: float) -> None:
    """Print medians of B/A: rates, and the service's CPU for each create and each life. Both trees
    need a `.venv` (`make install`)."""
    ratios: Ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        with Servers(Path(folder), Options(seconds, 256)) as servers:
            named = dict(zip("ab", trees, strict=True))
            compare(servers, named, rounds, ratios)
    for name, found in ratios.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        click.echo(f"{name:12} {statistics.median(found):.3f} ({spread})")


def compare(servers: Servers, trees: Mapping[str, Path], rounds: int, ratios: Ratios) -> None:
    """Adds the ratios of each round; the first round does not count."""
    with ExitStack() as stack:
        taking = {
            name: stack.enter_context(servers.service(f"taking_{name}", 0, name_of(name), tree))
            for name, tree in trees.items()
        }
        take_turns(servers, "creates", rounds, ratios, lambda name: created(servers, taking[name]))
    with ExitStack() as stack:
        working = {
            name: stack.enter_context(
                servers.service(f"working_{name}", 1, name_of(name), tree, **DRAINING)
            )
            for name, tree in trees.items()
        }
        take_turns(
            servers,
            "lives",
            rounds,
            ratios,
            lambda name: servers.lives_of(working[name], CREATE),
        )
    take_turns(servers, "drain", DRAINS, ratios, lambda name: drained(servers, name, trees[name]))


def take_turns(
    servers: Servers, what: str, rounds: int, ratios: Ratios, measure: Callable[[str], Found]
) -> None:
    for number in range(rounds + 1):
        found = {}
        for name in "ab" if number % 2 else "ba":
            servers.forget(name_of(name))
            found[name] = measure(name)
        if number:
            ratios.setdefault(what, []).append(found["b"]["rate"] / found["a"]["rate"])
            if "cpu" in found["a"]:
                used = [found[name]["cpu"]["server"] for name in "ab"]
                ratios.setdefault(f"{what}: CPU", []).append(used[1] / used[0])


def created(servers: Servers, child: Child) -> Found:
    return servers.load(child, [CREATE], 201)


def drained(servers: Servers, name: str, tree: Path) -> Found:
    since = backlog.lowest_id(servers)
    backlog.fill(servers, name_of(name), servers.options.backlog)
    with servers.service(f"draining_{name}", 1, name_of(name), tree, **DRAINING):
        return backlog.drained(servers, name_of(name), since)


def name_of(name: str) -> str:
    """Returns the database, and prefix of keys, of a tree: their schemas may differ."""
    return f"bench_{name}"


if __name__ == "__main__":
    main(prog_name="python -m ops.bench.compare")
