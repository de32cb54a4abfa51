"""How the cost grows, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.bench.growth import EMPTY, FIGURES, GROWN


def tables(growth: Mapping[str, Any]) -> str:
    return "\n\n".join((_shapes(growth), _beside_empty(growth), _many(growth)))


def _shapes(growth: Mapping[str, Any]) -> str:
    head = " | ".join(words for words, _ in FIGURES.values())
    lines = [
        f"| ratio to the echo at the same work: median (spread), a second | {head} | scrape ms |",
        f"|---|{'---|' * len(FIGURES)}---|",
    ]
    for words, found in growth["summary"].items():
        cells = [f"{_spread(found[name])}, {found[name]['rate']:,.0f}" for name in FIGURES]
        if words == GROWN:
            words = f"{growth['finished']:,} {words}"
        lines.append(f"| {words} | {' | '.join(cells)} | {found['scrape_ms']:.1f} |")
    return "\n".join(lines)


def _beside_empty(growth: Mapping[str, Any]) -> str:
    scrapes = [growth["summary"][words]["scrape_ms"] for words in (EMPTY, GROWN)]
    lines = [
        f"| {growth['finished']:,} finished tasks | ratio to the empty table, median (spread) |",
        "|---|---|",
    ]
    lines += [
        f"| {words} | {_spread(growth['beside_empty'][name])} |"
        for name, (words, _) in FIGURES.items()
    ]
    lines.append(f"| a scrape | {scrapes[1]:.1f} ms, empty {scrapes[0]:.1f} ms |")
    return "\n".join(lines)


def _many(growth: Mapping[str, Any]) -> str:
    drain, waiting, running = growth["drain"], growth["waiting"], growth["running"]
    lines = ["| many at a time | once |", "|---|---|"]
    lines.append(
        f"| drain of {drain['count']:,} | **{drain['ratio']:.2f}** of the echo's creates,"
        f" {drain['rate']:,.0f} a second |"
    )
    for found, words in ((waiting, "waiting"), (running, "running sleeps")):
        lines.append(
            f"| resident memory with {found['count']:,} {words} |"
            f" {found['resident_bytes'] / 1e6:.0f} MB, at most"
            f" {found['peak_resident_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def _spread(found: Mapping[str, float]) -> str:
    return f"**{found['ratio']:.2f}** ({found['lowest']:.2f}–{found['highest']:.2f})"
