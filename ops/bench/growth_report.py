"""How the cost grows, as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.bench.finished import EMPTY, GROWN
from ops.bench.growth import DRAIN, beside_empty
from ops.bench.shapes import FIGURES


def tables(growth: Mapping[str, Any]) -> str:
    parts = [_shapes(growth), _beside_empty(growth), _many(growth), _failed(growth)]
    return "\n\n".join(part for part in parts if part)


def _shapes(growth: Mapping[str, Any]) -> str:
    head = " | ".join(words for words, _ in FIGURES.values())
    lines = [
        f"| ratio to the echo at the same work: median (spread), a second | {head} | scrape ms"
        " | most memory MB |",
        f"|---|{'---|' * len(FIGURES)}---|---|",
    ]
    for words, found in growth["summary"].items():
        cells = [f"{_spread(found[name])}, {found[name]['rate']:,.0f}" for name in FIGURES]
        cells += [f"{found['scrape_ms']:.1f}", _megabytes(found["peak_resident_bytes"])]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside_empty(growth: Mapping[str, Any]) -> str:
    found = beside_empty(growth)
    if not found:
        return ""
    lines = [
        f"| {growth['finished']:,} finished tasks | ratio to the empty table, median (spread) |",
        "|---|---|",
    ]
    lines += [f"| {words} | {_spread(found[name])} |" for name, (words, _) in FIGURES.items()]
    scrapes, peaks = (growth["beside_empty"][each] for each in ("scrape_ms", "peak_resident_bytes"))
    lines.append(f"| a scrape | {scrapes[GROWN]:.1f} ms, empty {scrapes[EMPTY]:.1f} ms |")
    lines.append(
        f"| most memory | {_megabytes(peaks[GROWN])} MB, empty {_megabytes(peaks[EMPTY])} MB |"
    )
    return "\n".join(lines)


def _many(growth: Mapping[str, Any]) -> str:
    if not growth["many"]:
        return ""
    lines = ["| many at a time | once |", "|---|---|"]
    for words, found in growth["many"].items():
        if words == DRAIN:
            lines.append(
                f"| {words} | **{found['ratio']:.2f}** of the echo's creates,"
                f" {found['rate']:,.0f} a second |"
            )
        else:
            lines.append(
                f"| resident memory with {words} | {_megabytes(found['resident_bytes'])} MB,"
                f" at most {_megabytes(found['peak_resident_bytes'])} MB |"
            )
    return "\n".join(lines)


def _failed(growth: Mapping[str, Any]) -> str:
    return "\n".join(f"FAILED: {what}: {why}" for what, why in growth["failed"].items())


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


def _spread(found: Mapping[str, float]) -> str:
    return f"**{found['ratio']:.2f}** ({found['lowest']:.2f}–{found['highest']:.2f})"
