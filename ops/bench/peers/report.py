"""What was found of the peers: one table of figures, one of guarantees."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ops.bench.peers.registry import PEERS, TASKSVC, Guarantees
from ops.bench.servers import Found

MEASURES = {
    "creates": "creates over HTTP",
    "lives": "whole lives over HTTP",
    "drain": "drain as a library",
}

OWN = {
    "tasksvc": "**tasksvc**, 1,000 places",
    "tasksvc-default": "**tasksvc**, as it comes: 100 places",
}

Round = dict[str, dict[str, Found]]
"""For each subject its measures, each with the rate of the echo before it; and the echo's own."""


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """For each measure of each subject the median, the spread, and the ratios to the echo."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for subject in dict.fromkeys(name for each in rounds for name in each if name != "echo"):
        for measure in MEASURES:
            measured = [
                each[subject][measure] for each in rounds if measure in each.get(subject, {})
            ]
            if measured:
                found.setdefault(subject, {})[measure] = _summed_up(measured)
    return found


def _summed_up(measured: Sequence[Found]) -> dict[str, float]:
    ratios = [each["rate"] / each["echo_rate"] for each in measured]
    return {
        "rate": statistics.median(each["rate"] for each in measured),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def echo_rates(rounds: Sequence[Round]) -> dict[str, float]:
    rates = [each["rate"] for measured in rounds for each in measured["echo"].values()]
    return {"rate": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def unexpected(rounds: Sequence[Round]) -> dict[str, int]:
    """What the load was answered that it should not have been."""
    found: dict[str, int] = {}
    for each in rounds:
        for subject, measures in each.items():
            for measure, measured in measures.items():
                for what, count in measured["unexpected"].items():
                    key = f"{subject}, {measure}: {what}"
                    found[key] = found.get(key, 0) + count
    return found


def table(results: Mapping[str, Any]) -> str:
    """The results, as two Markdown tables and a few lines."""
    return "\n\n".join((_figures(results), _guarantees(results), _facts(results)))


def _figures(results: Mapping[str, Any]) -> str:
    found, failed = results["summary"], results["failed"]
    head = [f"{words}: a second, ratio to the echo (spread)" for words in MEASURES.values()]
    lines = [f"| | {' | '.join(head)} |", "|---|---|---|---|"]
    for subject, title in _subjects(results).items():
        cells = [_cell(found.get(subject, {}).get(measure)) for measure in MEASURES]
        if subject in failed:
            title += f": **{failed[subject]}**"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    echo = results["echo"]
    lines.append(
        f"| the echo: bare aiohttp | {echo['rate']:,.0f}, **1**"
        f" ({echo['lowest']:,.0f}–{echo['highest']:,.0f} a second) | – | – |"
    )
    return "\n".join(lines)


def _guarantees(results: Mapping[str, Any]) -> str:
    lines = [
        "| | set to | an answered create is durable | Redis and its files are lost"
        " | a worker is killed | results kept | fenced | source |",
        "|---|---|---|---|---|---|---|---|",
        _guaranteed("tasksvc", "1,000 places, or 100", TASKSVC),
    ]
    for peer in PEERS:
        if peer.name in _subjects(results):
            lines.append(_guaranteed(peer.title, peer.settings, peer.guarantees))
    return "\n".join(lines)


def _guaranteed(title: str, settings: str, given: Guarantees) -> str:
    cells = (title, settings, given.durable, given.redis_loss, given.killed_worker)
    return f"| {' | '.join((*cells, given.results, given.fenced, given.source))} |"


def _facts(results: Mapping[str, Any]) -> str:
    lines = [" · ".join(f"{name} {value}" for name, value in results["machine"].items())]
    for what, count in results["unexpected"].items():
        lines.append(f"UNEXPECTED: {what}, {count} times")
    return "\n".join(lines)


def _subjects(results: Mapping[str, Any]) -> dict[str, str]:
    """Each with its title, in the table's order: all that were asked for, measured or not."""
    versions = results["versions"]
    titles = OWN | {
        peer.name: f"{peer.title} {versions.get(peer.name, '')}".strip() for peer in PEERS
    }
    known = results["summary"].keys() | results["failed"].keys()
    return {subject: title for subject, title in titles.items() if subject in known}


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    spread = f"{found['lowest']:.3f}–{found['highest']:.3f}"
    return f"{found['rate']:,.0f}, **{found['ratio']:.3f}** ({spread})"
