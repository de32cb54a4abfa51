"""The ratios as a bar chart: an SVG that needs nothing else to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH = 760
_LABELS = 190
_VALUES = 60
_TOP = 58
_ROW = 34
_BAR = 18

_INK = "#222222"
_FAINT = "#666666"
_GRID = "#dddddd"
_BAR_COLOR = "#4c78a8"
_SPREAD_COLOR = "#1b3a5c"


class Bar(NamedTuple):
    """A median, and the least and the most that were measured."""

    words: str
    ratio: float
    lowest: float
    highest: float


def bars(summary: Mapping[str, Mapping[str, float]], words: Mapping[str, str]) -> list[Bar]:
    """Those of the summary that have a ratio, in the order of their words."""
    return [
        Bar(words[name], *(summary[name][each] for each in ("ratio", "lowest", "highest")))
        for name in words
        if name in summary
    ]


def chart(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0 on, each with its spread as a line; the reference stands at 1."""
    longest = max([1.0, *(bar.highest for bar in bars)])
    step = next(each for each in (0.25, 0.5, 1.0, 2.0, 5.0, longest) if longest / each <= 8)
    ticks = [number * step for number in range(int(longest / step) + 1)]
    bottom = _TOP + _ROW * len(bars)
    height = bottom + 46

    def x(ratio: float) -> float:
        return round(_LABELS + ratio / longest * (_WIDTH - _LABELS - _VALUES), 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="Helvetica, Arial, sans-serif"'
        f' font-size="13" fill="{_INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="16" y="43" font-size="11" fill="{_FAINT}">{escape(subtitle)}</text>',
    ]
    for tick in ticks:
        lines.append(_vertical(x(tick), _TOP - 2, bottom, _GRID, 1))
        lines.append(
            f'<text x="{x(tick)}" y="{bottom + 17}" font-size="11" fill="{_FAINT}"'
            f' text-anchor="middle">{tick:g}</text>'
        )
    lines.append(_vertical(x(1), _TOP - 2, bottom, _INK, 1.5))
    for number, bar in enumerate(bars):
        lines += _drawn(bar, _TOP + _ROW * number + _ROW / 2, x)
    lines.append(
        f'<text x="{x(0)}" y="{bottom + 35}" font-size="11" fill="{_FAINT}">ratio to a bare'
        " aiohttp echo of the same round: median and spread</text>"
    )
    return "\n".join([*lines, "</svg>\n"])


def _drawn(bar: Bar, middle: float, x: Callable[[float], float]) -> list[str]:
    return [
        f'<text x="{_LABELS - 10}" y="{middle + 4.5}" text-anchor="end">{escape(bar.words)}</text>',
        f'<rect x="{x(0)}" y="{middle - _BAR / 2}" width="{round(x(bar.ratio) - x(0), 1)}"'
        f' height="{_BAR}" fill="{_BAR_COLOR}"/>',
        f'<line x1="{x(bar.lowest)}" y1="{middle}" x2="{x(bar.highest)}" y2="{middle}"'
        f' stroke="{_SPREAD_COLOR}" stroke-width="3"/>',
        f'<text x="{x(max(bar.ratio, bar.highest)) + 8}" y="{middle + 4.5}"'
        f' font-weight="bold">{bar.ratio:.2f}</text>',
    ]


def _vertical(x: float, top: float, bottom: float, color: str, width: float) -> str:
    return (
        f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="{color}"'
        f' stroke-width="{width}"/>'
    )
