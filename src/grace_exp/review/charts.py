"""Charts as static SVG: lines over steps, stacked areas, a heat map, parallel coordinates.

Colours are classes that the page's style sheet fills, so that a chart follows the dark or light theme. The `data-`
attributes hold what the pointer shows.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 26
COLOURS = 8
"""Classes c0 to c7; further series use them again with dashes."""
_LEAST_GAP, _LETTER, _SPACE, _LINE = 150, 7.0, 16, 15
"""Distances in pixels: between axes, of a letter's width, between texts, of a line."""
_MOST_MARKS = 6
MOST_POINTS = 400
"""Longer series are shown by the means of this many parts."""

Values = Sequence[float | None]


def thinned(steps: Sequence[int], series: Mapping[str, Values]) -> tuple[list[float], dict[str, list[float | None]]]:
    """Return at most `MOST_POINTS` points: for longer series the mean of each part, and the mean of its steps."""
    size = math.ceil(len(steps) / MOST_POINTS) or 1
    if size == 1:
        return list(steps), {name: list(values) for name, values in series.items()}
    starts = range(0, len(steps), size)
    xs = [sum(steps[i : i + size]) / len(steps[i : i + size]) for i in starts]
    return xs, {name: [_mean(values[i : i + size]) for i in starts] for name, values in series.items()}


def _mean(values: Values) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def line_chart(steps: Sequence[float], series: Mapping[str, Values], *, label: str, stacked: bool = False) -> Markup:
    """Return lines over steps, or areas stacked on each other.

    Args:
        steps: Steps of the values.
        series: Values by name, one per step; None where it was not measured.
        label: Description of the chart, for users who do not see it.
        stacked: Whether the values are stacked.
    """
    drawn = _stacked(series) if stacked else {name: (None, values) for name, values in series.items()}
    present = [v for low, high in drawn.values() for part in (low or [], high) for v in part if v is not None]
    if not present or not steps:
        return Markup("")
    bottom, top = _range(0.0 if stacked else min(present), max(present))
    x = _scale(min(steps), max(steps), _LEFT, WIDTH - _RIGHT)
    y = _scale(bottom, top, HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(bottom, top, y), *_step_ticks(steps, x)]
    for number, (low, high) in enumerate(drawn.values()):
        colour = f"c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")
        if low is not None:
            there = [(x(s), y(v), y(u)) for s, v, u in zip(steps, high, low, strict=True) if None not in (v, u)]
            outline = [(a, b) for a, b, _ in there] + [(a, c) for a, _, c in reversed(there)]
            parts.append(f'<polygon class="area {colour}" points="{_points(outline)}"/>')
            continue
        points = [(x(s), y(v)) for s, v in zip(steps, high, strict=True) if v is not None]
        if len(points) > 1:
            parts.append(f'<polyline class="line {colour}" points="{_points(points)}"/>')
        if len(points) < len(steps) or len(points) == 1:  # measured only at some steps: show where
            parts += [f'<circle class="dot {colour}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    parts.append(f'<line class="pointer" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" visibility="hidden"/>')
    data = {
        "steps": [_short(step) for step in steps],
        "x": [round(x(step), 1) for step in steps],
        "series": {name: [_short(value) for value in values] for name, values in series.items()},
    }
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-chart="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, label, json.dumps(data, separators=(",", ":")), Markup("".join(parts)))


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float], label: str
) -> Markup:
    """Return a heat map of values by two settings.

    Args:
        rows: Values of the first setting, from top.
        columns: Values of the second setting.
        values: The values by row and column; a missing value leaves the cell empty.
        label: Description of the chart.
    """
    if not values:
        return Markup("")
    cell, left, top = (72, 34), 110, 30
    low, high = min(values.values()), max(values.values())
    parts = [
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            left + (i + 0.5) * cell[0], top - 10, name
        )
        for i, name in enumerate(columns)
    ]
    for j, row in enumerate(rows):
        y = top + j * cell[1]
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, y + 22, row)
        )
        for i, column in enumerate(columns):
            value = values.get((row, column))
            shade = "none" if value is None else f"h{round(9 * (value - low) / ((high - low) or 1))}"
            parts.append(
                Markup('<rect class="cell {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    shade, left + i * cell[0], y, cell[0] - 2, cell[1] - 2
                )
            )
            if value is not None:
                parts.append(
                    Markup('<text class="in {}" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                        shade, left + (i + 0.5) * cell[0], y + 21, f"{value:.4g}"
                    )
                )
    width, height = left + len(columns) * cell[0], top + len(rows) * cell[1]
    return Markup('<svg class="map" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, label, Markup("".join(parts))
    )


def parallel_coordinates(axes: Mapping[str, Sequence[Any]], label: str) -> Markup:
    """Return a chart with a line per job through an axis for each setting and metric.

    Args:
        axes: Values by name, one per job: numbers, or text, which is placed in the order of appearance; None leaves the
            job out. The last axis gives the colour.
        label: Description of the chart.
    """
    names = list(axes)
    jobs = [row for row in zip(*axes.values(), strict=True) if None not in row]
    if len(names) < 2 or not jobs:
        return Markup("")
    height, top, bottom = 280, 40, 30
    gaps = [max(_LEAST_GAP, _LETTER * (len(a) + len(b)) / 2 + _SPACE) for a, b in itertools.pairwise(names)]
    first, last = (max(60.0, _LETTER * len(name) / 2 + _SPACE) for name in (names[0], names[-1]))
    xs = list(itertools.accumulate(gaps, initial=first))
    width = round(max(WIDTH, xs[-1] + last))
    places = [_places(column) for column in zip(*jobs, strict=True)]
    ys = [[height - bottom - place * (height - top - bottom) for place in column] for column in places]
    parts = []
    for job in sorted(range(len(jobs)), key=lambda job: places[-1][job]):
        shade = round(9 * places[-1][job])
        points = _points([(xs[axis], ys[axis][job]) for axis in range(len(names))])
        parts.append(f'<polyline class="way h{shade}" points="{points}"/>')
    for axis, name in enumerate(names):
        parts.append(f'<line class="axis" x1="{xs[axis]}" x2="{xs[axis]}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(xs[axis], top - 16, name)
        )
        ends = {ys[axis][job]: _text(jobs[job][axis]) for job in range(len(jobs))}
        for y in _apart(sorted(ends) if len(ends) <= _MOST_MARKS else [min(ends), max(ends)]):
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    xs[axis] - 6, y + 4, ends[y]
                )
            )
    return Markup('<svg class="map" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, label, Markup("".join(parts))
    )


def _apart(heights: Sequence[float]) -> list[float]:
    """Return the last of ascending heights, and those others that leave room for a line of text."""
    kept: list[float] = []
    for height in heights:
        if height == heights[-1]:
            kept = [other for other in kept if height - other >= _LINE] + [height]
        elif not kept or height - kept[-1] >= _LINE:
            kept.append(height)
    return kept


def _places(values: Sequence[Any]) -> list[float]:
    """Return the positions on an axis, from 0 at the bottom to 1 at the top."""
    if all(isinstance(value, int | float) for value in values):
        numbers = [float(value) for value in values]
    else:
        order = list(dict.fromkeys(values))
        numbers = [float(order.index(value)) for value in values]
    low, high = min(numbers), max(numbers)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stacked(series: Mapping[str, Values]) -> dict[str, tuple[list[float | None], list[float | None]]]:
    found: dict[str, tuple[list[float | None], list[float | None]]] = {}
    base: list[float] = []
    for name, values in series.items():
        base = base or [0.0] * len(values)
        top = [low + (value or 0.0) for low, value in zip(base, values, strict=True)]
        found[name] = (list(base), list(top))
        base = top
    return found


def _range(low: float, high: float) -> tuple[float, float]:
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        room = abs(high) * 0.1
        return (low - room, high + room) if room else (0.0, 1.0)
    return low, high


def _scale(low: float, high: float, start: float, end: float) -> Any:
    span = high - low
    return lambda value: start + (value - low) / span * (end - start) if span else (start + end) / 2


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers between two values."""
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = min((size * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda width: abs(width - raw))
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(bottom: float, top: float, y: Any) -> list[str]:
    parts = []
    for value in ticks(bottom, top):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        text = escape(f"{0.0 if abs(value) < 1e-12 * (top - bottom) else value:.5g}")
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    return parts


def _step_ticks(steps: Sequence[float], x: Any) -> list[str]:
    low, high = min(steps), max(steps)
    values = [value for value in ticks(low, high, 6) if value == int(value)] if high > low else [low]
    return [
        f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.0f}</text>'
        for value in values
    ]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")
