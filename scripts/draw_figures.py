"""Draws the figures of README.md into docs/figures/ (python scripts/draw_figures.py).

`step.svg` is the GRACE step. `demo.svg` shows what the demo learns: the margin in cosine between a rationale's own
query and the other queries of its batch (experiments/demo/curves.csv). Both follow the colour scheme.
"""

import csv
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
CURVES = ROOT / "experiments" / "demo" / "curves.csv"

STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
.quiet { fill: #59636e; font-size: 12px; }
.head { font-weight: 600; }
rect { fill: #f6f8fa; stroke: #8c959f; }
.trained { fill: #ddf4ff; stroke: #0969da; }
path, polyline { fill: none; stroke: #59636e; stroke-width: 1.5; }
polyline { stroke: #0969da; }
.axis { stroke: #8c959f; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.quiet { fill: #9198a1; }
rect { fill: #161b22; stroke: #6e7681; }
.trained { fill: #0c2d6b; stroke: #58a6ff; }
path { stroke: #9198a1; }
polyline { stroke: #58a6ff; }
.axis { stroke: #6e7681; }
}
</style>"""


def main() -> None:
    """Write both figures."""
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / "step.svg").write_text(step(), encoding="utf-8")
    (FIGURES / "demo.svg").write_text(demo(), encoding="utf-8")


def step() -> str:
    """Draw the GRACE step: five boxes, and the path of the gradient."""
    boxes = [
        ("1  batch", ["query, positive,", "negative"], ""),
        ("2  write", ["the policy writes K", "rationales of the", "positive, one of", "each other text"], "trained"),
        ("3  embed", ["one forward: the", "mean hidden state", "of text + rationale,", "and log-probs"], "trained"),
        ("4  reward", ["cosines between", "embeddings: near its", "query, far from the", "others"], ""),
        ("5  update", ["advantage in a group", "of K, clipped", "policy gradient on", "the rationales"], "trained"),
    ]
    width, height, gap = 168, 116, 26
    parts = []
    for number, (title, lines, kind) in enumerate(boxes):
        left = 8 + number * (width + gap)
        parts.append(f'<rect class="{kind}" x="{left}" y="34" width="{width}" height="{height}" rx="8"/>')
        parts.append(f'<text class="head" x="{left + 12}" y="58">{escape(title)}</text>')
        parts += [f'<text x="{left + 12}" y="{79 + 18 * row}">{escape(line)}</text>' for row, line in enumerate(lines)]
        if number:
            parts.append(f'<path d="M {left - gap + 2} 92 L {left - 4} 92" marker-end="url(#arrow)"/>')
    first, last = 8 + width + gap + width / 2, 8 + 4 * (width + gap) + width / 2
    parts.append(f'<path d="M {last} 150 L {last} 178 L {first} 178 L {first} 154" marker-end="url(#arrow)"/>')
    place = f'x="{(first + last) / 2 - 120}" y="194"'
    parts.append(f'<text class="quiet" {place}>new weights write the next step\'s rationales</text>')
    parts.append('<text class="quiet" x="8" y="20">One GRACE step. Blue: the language model that is trained.</text>')
    return _svg(8 + 5 * (width + gap), 204, parts)


def demo() -> str:
    """Draw the margin over the steps of the demo, one line per seed."""
    curves: dict[str, list[float]] = defaultdict(list)
    with CURVES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves[row["seed"]].append(float(row["embed/margin"]))
    left, top, width, height = 56, 34, 420, 150
    values = [value for curve in curves.values() for value in curve]
    low, high = 0.1, max(values) * 1.05

    def place(number: int, value: float, count: int) -> str:
        return f"{left + width * number / (count - 1):.1f},{top + height * (high - value) / (high - low):.1f}"

    parts = [f'<path class="axis" d="M {left} {top} L {left} {top + height} L {left + width} {top + height}"/>']
    for tick in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        if low <= tick <= high:
            y = top + height * (high - tick) / (high - low)
            parts.append(f'<text class="quiet" x="{left - 32}" y="{y + 4:.1f}">{tick:.1f}</text>')
            parts.append(f'<path class="axis" d="M {left - 4} {y:.1f} L {left} {y:.1f}"/>')
    steps = max(map(len, curves.values()))
    for tick in range(1, steps + 1, 5):
        x = left + width * (tick - 1) / (steps - 1)
        parts.append(f'<text class="quiet" x="{x - 4:.1f}" y="{top + height + 18}">{tick}</text>')
    for curve in curves.values():
        points = " ".join(place(number, value, len(curve)) for number, value in enumerate(curve))
        parts.append(f'<polyline points="{points}"/>')
    parts.append(
        f'<text class="quiet" x="{left - 44}" y="18">cosine to the own query less the mean cosine to others, by step; '
        f"{len(curves)} seeds</text>"
    )
    return _svg(left + width + 24, top + height + 30, parts)


def _svg(width: float, height: float, parts: list[str]) -> str:
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 10 5 L 0 10"/></marker></defs>'
    )
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{STYLE}{arrow}{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    main()
