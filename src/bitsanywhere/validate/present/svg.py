"""Small plots as SVG text: lines, bars with intervals, histograms. Nothing is loaded or installed.

Series are named by the columns' titles, each of which has its colour in every plot. Text takes the
colour of the page around it, so that a plot fits light and dark ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bitsanywhere.validate.plan import BF16, DEQUANTIZED, OURS, PEER, REFERENCE, TITLES

COLOURS = {
    TITLES[BF16]: "#6b7a8f",
    TITLES[OURS]: "#0b6e4f",
    TITLES[DEQUANTIZED]: "#d9822b",
    TITLES[REFERENCE]: "#7a4fa3",
    TITLES[PEER]: "#c8553d",
}
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44
LEGEND = 200


@dataclass(frozen=True)
class Bar:
    """A bar and, where it has one, the interval around its end."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * k for k in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def line_plot(series: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> str:
    """A line a series against 1, 2, 3 ..."""
    values = [value for each in series.values() for value in each]
    low, high = _padded(min(values), max(values))
    x = _Scale(1, max(2, *(len(each) for each in series.values())), LEFT, WIDTH - RIGHT)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y, x_label, y_label), *_legend(list(series), LEGEND)]
    for name, each in series.items():
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(each, 1))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5" '
            'stroke-opacity="0.85"/>'
        )
    return _document(parts, HEIGHT)


def histogram(
    series: Mapping[str, Sequence[float]], x_label: str, y_label: str, mark: float, bins: int = 40
) -> str:
    """Counts of values; outlined, so that equal series lie visibly on one another.

    Args:
        mark: a value to mark by an upright line.
    """
    values = [mark, *(value for each in series.values() for value in each)]
    low, high = _padded(min(values), max(values))
    counts = {name: _counts(each, low, high, bins) for name, each in series.items()}
    x = _Scale(low, high, LEFT, WIDTH - RIGHT)
    y = _Scale(0, max(max(each) for each in counts.values()) * 1.05, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y, x_label, y_label), *_legend(list(series), LEGEND)]
    for i, (name, each) in enumerate(counts.items()):
        colour = COLOURS[name]
        edges = [(x(low + (high - low) * k / bins), y(count)) for k, count in enumerate(each)]
        path = f"M{x(low):.1f},{y(0):.1f}"
        path += "".join(f"V{top:.1f}h{(x(high) - x(low)) / bins:.3f}" for _, top in edges)
        path += f"V{y(0):.1f}z"
        fill = f'fill="{colour}" fill-opacity="0.35"' if i == 0 else 'fill="none"'
        dash = "" if i == 0 else ' stroke-dasharray="4 3"'
        parts.append(f'<path d="{path}" {fill} stroke="{colour}"{dash}/>')
    parts.append(_upright(x(mark)))
    return _document(parts, HEIGHT)


def bar_plot(groups: Mapping[str, Sequence[Bar]], unit: str, mark: float | None = None) -> str:
    """Horizontal bars from zero, group under group; a label is a column's title.

    Args:
        mark: a value to mark by an upright line.
    """
    bars = [bar for group in groups.values() for bar in group]
    labels = list(dict.fromkeys(bar.label for bar in bars))
    ends = [0.0, mark or 0.0, *(bar.value for bar in bars)]
    ends += [end for bar in bars for end in (bar.low, bar.high) if end is not None]
    left, row = 230, 20
    x = _Scale(min(ends), max(ends) * 1.12 or 1.0, left, WIDTH - RIGHT)
    bottom = TOP + row * len(bars) + 14 * len(groups)
    parts = _bottom_axis(x, bottom, unit) + _legend(labels, LEFT)
    place = float(TOP)
    for name, group in groups.items():
        middle = place + row * len(group) / 2 + 4
        parts.append(_text(left - 10, middle, name, "end"))
        for bar in group:
            parts += _bar(bar, x, place, row, COLOURS[bar.label])
            place += row
        place += 14
    if mark is not None:
        parts.append(_upright(x(mark), bottom))
    return _document(parts, bottom + BOTTOM)


def _bar(bar: Bar, x: _Scale, place: float, row: int, colour: str) -> list[str]:
    start, end = sorted((x(0), x(bar.value)))
    middle = place + row / 2
    parts = [
        f'<rect x="{start:.1f}" y="{place + 2:.1f}" width="{end - start:.1f}" '
        f'height="{row - 4}" fill="{colour}"/>'
    ]
    if bar.low is not None and bar.high is not None:
        parts.append(
            f'<path d="M{x(bar.low):.1f},{middle:.1f}H{x(bar.high):.1f}" stroke="currentColor" '
            'stroke-width="1.5"/>'
        )
        end = max(end, x(bar.high))
    return [*parts, _text(end + 5, middle + 4, f"{bar.value:.4g}", "start")]


def _counts(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return counts


def _padded(low: float, high: float) -> tuple[float, float]:
    space = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - space, high + space


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = _bottom_axis(x, HEIGHT - BOTTOM, x_label)
    for value in ticks(y.low, y.high):
        parts.append(
            f'<path d="M{LEFT},{y(value):.1f}H{WIDTH - RIGHT}" stroke="currentColor" '
            'stroke-opacity="0.15"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.4g}", "end"))
    return [*parts, _text(LEFT - 50, TOP - 8, y_label, "start")]


def _bottom_axis(x: _Scale, bottom: float, label: str) -> list[str]:
    parts = [f'<path d="M{x.first},{bottom}H{x.last}" stroke="currentColor" stroke-opacity="0.5"/>']
    for value in ticks(x.low, x.high, about=6):
        parts.append(_text(x(value), bottom + 16, f"{value:.4g}", "middle"))
    return [*parts, _text((x.first + x.last) / 2, bottom + 34, label, "middle")]


def _legend(names: Sequence[str], place: float) -> list[str]:
    parts = []
    for name in names:
        parts.append(f'<rect x="{place}" y="8" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(_text(place + 17, 18, name, "start"))
        place += 34 + 6.6 * len(name)
    return parts


def _upright(x: float, bottom: float = HEIGHT - BOTTOM) -> str:
    return (
        f'<path d="M{x:.1f},{TOP - 4}V{bottom}" stroke="currentColor" stroke-width="1.2" '
        'stroke-dasharray="2 3"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(text)}</text>"
    )


def _document(parts: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        'font-family="system-ui, sans-serif" font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    )
