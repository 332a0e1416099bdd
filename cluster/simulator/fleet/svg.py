"""Line plots as inline SVG: a page with them needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 620, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
TICKS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """`label` names the unit. `top`: of a scale that has an end by nature."""

    label: str
    log: bool = False
    top: float | None = None


@dataclass(frozen=True, slots=True)
class _Scale:
    axis: Axis
    low: float
    high: float
    first: float  # pixel of `low`
    last: float

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.axis.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.first + (value - low) / (high - low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        if self.axis.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [10.0**p for p in powers if self.low <= 10.0**p <= self.high]
        step = _round((self.high - self.low) / TICKS)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + place * step for place in range(count + 1)]


def plot(title: str, lines: dict[str, Points], x: Axis, y: Axis, *, step: bool = False) -> str:
    """One figure with a legend. `step`: values hold until the next one."""
    lines = {name: _seen(points, x, y) for name, points in lines.items()}
    every = [point for points in lines.values() for point in points]
    if not every:
        return f"<figure><figcaption>{escape(title)}: nothing to show</figcaption></figure>"
    across = _scale(x, [point[0] for point in every], LEFT, WIDTH - RIGHT)
    up = _scale(y, [point[1] for point in every], HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up)]
    legend = []
    for place, (name, points) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        pixels = [(across.at(a), up.at(b)) for a, b in points]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
            + " ".join(f"{a:.1f},{b:.1f}" for a, b in (_stairs(pixels) if step else pixels))
            + '"/>'
        )
        legend.append(f'<span style="color:{colour}">&#9632;</span> {escape(name)}')
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
        f"<div>{' &nbsp; '.join(legend)}</div></figure>"
    )


def _seen(points: Points, x: Axis, y: Axis) -> Points:
    """Without what a logarithm has no place for."""
    return [(a, b) for a, b in points if (a > 0 or not x.log) and (b > 0 or not y.log)]


def _scale(axis: Axis, values: Sequence[float], first: float, last: float) -> _Scale:
    low, high = (min(values), max(values)) if axis.log else (min(0.0, *values), max(values))
    high = max(high, axis.top or high)
    if high <= low:
        high = low * 2 or 1.0
    return _Scale(axis, low, high, first, last)


def _grid(across: _Scale, up: _Scale) -> str:
    bottom, left = HEIGHT - BOTTOM, LEFT
    parts = []
    for value in across.ticks():
        at = across.at(value)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#eee"/>')
        parts.append(_text(at, bottom + 14, _number(value), "middle"))
    for value in up.ticks():
        at = up.at(value)
        parts.append(
            f'<line x1="{left}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#eee"/>'
        )
        parts.append(_text(left - 5, at + 3.5, _number(value), "end"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, HEIGHT - 5, across.axis.label, "middle"))
    parts.append(_text(4, TOP + 2, up.axis.label, "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" fill="#555" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _stairs(pixels: Points) -> list[tuple[float, float]]:
    found = list(pixels[:1])
    for (_, before), (x, y) in pairwise(pixels):
        found += [(x, before), (x, y)]
    return found


def _round(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
