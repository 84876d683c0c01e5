"""Which metrics are shown together: the panels of the HTML report, the W&B workspace and the W&B report."""

from collections.abc import Iterable
from dataclasses import dataclass

from grace_exp.tracking.metrics import METRICS, SECTIONS, Section, find_metric, in_order


@dataclass(frozen=True)
class Panel:
    """One chart of metrics.

    Attributes:
        section: The section in which it is shown.
        title: The title above it.
        names: The metrics in it, by their logged names.
        stacked: Whether the values are stacked.
    """

    section: Section
    title: str
    names: tuple[str, ...]
    stacked: bool = False

    @property
    def unit(self) -> str:
        """The unit of the values, if they share one."""
        units = {metric.unit for name in self.names if (metric := find_metric(name)) is not None}
        return units.pop() if len(units) == 1 else ""

    @property
    def better(self) -> str:
        """Which direction is good, if it is the same for all."""
        ways = {metric.better for name in self.names if (metric := find_metric(name)) is not None}
        return ways.pop() if len(ways) == 1 else ""

    @property
    def meaning(self) -> str:
        """What is shown, in a sentence for each kind of metric."""
        metrics = dict.fromkeys(metric for name in self.names if (metric := find_metric(name)) is not None)
        return " ".join(f"{metric.name}: {metric.meaning}" for metric in metrics)


_STEP_PHASES = ("time/rollout", "time/score", "time/reward", "time/update", "time/sync")

_TOGETHER: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Reward", ("reward/total/mean", "reward/final/mean"), False),
    ("Held-out figures", ("val/<set>/rationale", "val/<set>/prompt_only"), False),
    ("Share in the advantages", ("reward/<term>/advantage_share",), False),
    ("Spread in a group", ("reward/<term>/within_group_std",), False),
    ("Terms, weighted", ("reward/<term>/mean",), False),
    ("Terms, standard deviation", ("reward/<term>/std",), False),
    ("Exchanged instances", ("rollout/zero_spread_dropped", "rollout/zero_spread_left"), False),
    ("Length", ("rollout/tokens_mean", "rollout/tokens_max"), False),
    ("Cosines", ("embed/cos_pos", "embed/cos_neg", "embed/cos_random"), False),
    ("Ratio to the old policy", ("train/ratio", "train/importance"), False),
    ("Trainer and engine: log-probs", ("mismatch/logprob_abs_mean", "mismatch/logprob_abs_max"), False),
    ("Trainer and engine: ratio", ("mismatch/ratio_mean", "mismatch/ratio_max"), False),
    ("Trainer and engine: effective sample size", ("mismatch/ess_token", "mismatch/ess_sequence"), False),
    ("Trainer and engine: left out", ("mismatch/truncated_share", "mismatch/masked_share"), False),
    ("Time of a step by phase", _STEP_PHASES, True),
)
"""Metrics of the list that share a panel. Every other metric has its own."""


def panels(logged: Iterable[str]) -> list[Panel]:
    """Return the panels of a run: every logged metric is in one, and every panel has a logged metric.

    Args:
        logged: Names of the run's metrics.

    Returns:
        The panels in the order of the sections and of the list of metrics.
    """
    entries: dict[str, list[str]] = {}
    for name in in_order(logged):
        metric = find_metric(name)
        if metric is not None:
            entries.setdefault(metric.name, []).append(name)
    together = {entry: group for group in _TOGETHER for entry in group[1]}
    found: dict[str, Panel] = {}
    for metric in METRICS:
        if metric.name not in entries:
            continue
        title, members, stacked = together.get(metric.name, (metric.name, (metric.name,), False))
        names = tuple(name for member in members for name in entries.get(member, ()))
        found.setdefault(title, Panel(metric.section, title, names, stacked))
    order = list(SECTIONS)
    return sorted(found.values(), key=lambda panel: order.index(panel.section))
