"""Checks, their figures, and the report of all of them."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class Skip(Exception):
    """Raised if this machine cannot run a check; the text says why."""


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        name: What was measured.
        value: The measured value.
        unit: Unit of the value; "" for a pure number.
        low: Lowest expected value; None: no limit.
        high: Highest expected value; None: no limit.
    """

    name: str
    value: float | str
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def expected(self) -> str:
        """Return the expected range in words."""
        if self.low is None and self.high is None:
            return ""
        if self.low == self.high:
            return f"{self.low:g}"
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    @property
    def verdict(self) -> str:
        """Return whether the value is in the expected range; "seen" if there is no range."""
        if not self.expected:
            return "seen"
        inside = (
            isinstance(self.value, float | int)
            and math.isfinite(self.value)
            and (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
        )
        return "pass" if inside else "FAIL"

    @property
    def shown(self) -> str:
        """Return value and unit as text."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{value} {self.unit}".strip()


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        key: A1, A2, ...; the letter names the list.
        title: What is checked.
        run: Measures; raises `Skip` if this machine cannot run it.
        seconds: Time limit.
    """

    key: str
    title: str
    run: Callable[[], list[Figure]]
    seconds: float


@dataclass
class Outcome:
    """Result of a check.

    Attributes:
        key: Key of the check.
        title: Title of the check.
        verdict: pass, FAIL, skipped, ERROR or TIMEOUT.
        seconds: Time taken.
        figures: Measured values.
        note: Reason of a skip, or the end of its output.
    """

    key: str
    title: str
    verdict: str
    seconds: float
    figures: list[Figure] = field(default_factory=list)
    note: str = ""


def judged(figures: list[Figure]) -> str:
    """Return one verdict for all figures."""
    return "FAIL" if any(figure.verdict == "FAIL" for figure in figures) else "pass"


def write_report(folder: Path, machine: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Write gpu_check.md and gpu_check.json."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [
        asdict(outcome)
        | {"figures": [asdict(one) | {"expected": one.expected, "verdict": one.verdict} for one in outcome.figures]}
        for outcome in outcomes
    ]
    report = {"machine": machine, "checks": plain}
    (folder / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lines = ["# gpu-check", "", *(f"- {name}: {value}" for name, value in machine.items()), ""]
    lines += ["| check | | verdict | seconds |", "|---|---|---|---|"]
    lines += [f"| {one.key} | {one.title} | {one.verdict} | {one.seconds:.0f} |" for one in outcomes]
    for outcome in outcomes:
        lines += ["", f"## {outcome.key}: {outcome.title}", ""]
        if outcome.note:
            lines += ["```", outcome.note, "```", ""]
        if outcome.figures:
            lines += ["| figure | value | expected | verdict |", "|---|---|---|---|"]
            lines += [f"| {one.name} | {one.shown} | {one.expected} | {one.verdict} |" for one in outcome.figures]
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
