"""One sentence that says whether a run has learned, with its interval."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from grace_exp.review.run_files import RunFiles

Tone = Literal["better", "worse", "unclear", "unknown"]

_KINDS = {"sts": "Spearman x 100", "retrieval": "nDCG@10 x 100"}
_FEWEST = 3  # steps in each part for an interval


@dataclass(frozen=True)
class Verdict:
    """A sentence about a run, and the numbers in it.

    Attributes:
        sentence: The sentence.
        tone: Whether it is good news.
        value: The change; None if nothing was measured.
        low: Lower end of its 95 % interval; None without interval.
        high: Upper end of the interval.
    """

    sentence: str
    tone: Tone
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def verdict(run: RunFiles) -> Verdict:
    """Judge a run by its first held-out set; without one by its reward; without a reward by its loss."""
    if not run.steps:
        return Verdict("The run made no step.", "unknown")
    if not run.finished:
        done = f"The run did not finish: {run.steps[-1] + 1} of {run.planned_steps} steps are done. "
        trend = _by_trend(run)
        return Verdict(done + trend.sentence, trend.tone, trend.value, trend.low, trend.high)
    rises = {name: row["rise"] for name, row in run.summary.get("heldout", {}).items() if "rise" in row}
    if not rises:
        return _by_trend(run)
    name, first = next(iter(rises.items()))
    row, kind = run.summary["heldout"][name], run.config["evaluation"]["sets"].get(name, {}).get("kind", "")
    tone = _tone(first["value"], first["low"], first["high"], higher_is_better=True)
    how = {
        "better": f"It learned: {name} ({_KINDS.get(kind, kind)}, held-out) rose by",
        "worse": f"It got worse: {name} ({_KINDS.get(kind, kind)}, held-out) fell by",
    }.get(tone, f"No clear change: {name} ({_KINDS.get(kind, kind)}, held-out) changed by")
    value = abs(first["value"]) if tone == "worse" else first["value"]
    low, high = (-first["high"], -first["low"]) if tone == "worse" else (first["low"], first["high"])
    others = "".join(f"; {other} by {_interval(**rise)}" for other, rise in rises.items() if other != name)
    moved = f"from {row['before']['value']:.1f} to {row['after']['value']:.1f} in {run.summary['steps']} steps"
    return Verdict(
        f"{how} {_interval(value, low, high)} points, {moved}{others}.",
        tone,
        first["value"],
        first["low"],
        first["high"],
    )


def _by_trend(run: RunFiles) -> Verdict:
    """Judge by the means of the first and last fifth of the steps."""
    name, higher = ("reward/total/mean", True) if "reward/total/mean" in run.metrics else ("train/loss", False)
    values = [value for value in run.metrics.get(name, []) if value is not None]
    if len(values) < 2:
        return Verdict("There are too few steps to say whether it learned.", "unknown")
    part = max(1, len(values) // 5)
    first, last = values[:part], values[-part:]
    change = sum(last) / part - sum(first) / part
    low = high = None
    if part >= _FEWEST:
        from scipy.stats import ttest_ind

        interval = ttest_ind(last, first, equal_var=False).confidence_interval(0.95)
        low, high = float(interval.low), float(interval.high)
    what = "reward" if higher else "loss"
    tone = _tone(change, low, high, higher_is_better=higher)
    how = {"better": "It trains", "worse": "It trains the wrong way"}.get(tone, "No clear change")
    without = " No held-out set was measured before and after." if run.finished else ""
    return Verdict(
        f"{how}: the {what} changed by {_interval(change, low, high, digits=3)} from the first to the last "
        f"{f'{part} steps' if part > 1 else 'step'}.{without}",
        tone,
        change,
        low,
        high,
    )


def _tone(value: float, low: float | None, high: float | None, *, higher_is_better: bool) -> Tone:
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (value > 0) == higher_is_better else "worse"


def _interval(value: float, low: float | None, high: float | None, digits: int = 1) -> str:
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
