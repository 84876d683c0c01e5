"""The list of metrics: name, meaning, unit, which direction is good, and the section in which it is shown.

A new metric is one line in `METRICS`; then run `python scripts/metrics_table.py`, which writes docs/metrics.md. Loggers
check names against the list. W&B workspace, W&B report and HTML report use its sections.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

Better = Literal["higher", "lower", "near 0", "near 1", ""]
Section = Literal["learning", "drivers", "rationales", "geometry", "stability", "cost", "evaluation"]

SECTIONS: dict[Section, str] = {
    "learning": "Learning",
    "drivers": "What drives it",
    "rationales": "Rationales",
    "geometry": "Geometry",
    "stability": "Stability",
    "cost": "Cost",
    "evaluation": "Evaluation",
}
"""Sections in the order in which they are shown, with their titles."""

SIDES = ("positive/", "query/")
"""Prefixes of the metrics of one trained side, if `rollout.policy_role=both` trains two."""


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of metrics.

    Attributes:
        name: The logged name; a part in angle brackets stands for any text without a slash.
        section: The section in which it is shown.
        unit: Unit of the values; "" for a pure number.
        better: Which direction is good; "" if neither is.
        meaning: One sentence.
        when: The settings with which it is logged; "" for every run with a reward.
    """

    name: str
    section: Section
    unit: str
    better: Better
    meaning: str
    when: str = ""
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the pattern."""
        text = "".join(part if part == "[^/]+" else re.escape(part) for part in re.split(r"(\[\^/\]\+)", self._open()))
        object.__setattr__(self, "pattern", re.compile(text))

    def _open(self) -> str:
        return re.sub(r"<\w+>", "[^/]+", self.name)


_BASELINE = "every method"
_HELDOUT = "evaluation with sets"
_CONTROLS = "evaluation.controls=true"
_PATHWISE = "objective.pathwise.weight > 0"
_CURRICULUM = "data.curriculum=difficulty"
_PARTS = "objective.pathwise.parts_every_n_steps"

METRICS = (
    # ---- learning: is it getting better?
    Metric("reward/total/mean", "learning", "reward", "higher", "Mean over rationales of the weighted sum of terms."),
    Metric("reward/final/mean", "learning", "reward", "higher", "The same after the truncation rule."),
    Metric("embed/in_batch_accuracy", "learning", "share", "higher", "Rationales whose own anchor is nearest."),
    Metric("embed/margin", "learning", "cosine", "higher", "cos_pos - cos_random."),
    Metric("val/<set>/rationale", "learning", "points", "higher", "Held-out figure with rationales.", _HELDOUT),
    Metric("val/<set>/prompt_only", "learning", "points", "higher", "Held-out figure without rationales.", _HELDOUT),
    # ---- drivers: what moves the advantages?
    Metric("reward/<term>/advantage_share", "drivers", "share", "", "The term's share in the advantages' variance."),
    Metric(
        "reward/<term>/within_group_std", "drivers", "reward", "higher", "Mean spread in a group; 0 trains nothing."
    ),
    Metric("reward/zero_spread_share", "drivers", "share", "lower", "Groups whose rationales all have one reward."),
    Metric("reward/<term>/mean", "drivers", "reward", "", "Mean of the weighted term; of weight 0, of the bare term."),
    Metric("reward/<term>/std", "drivers", "reward", "", "Standard deviation of the term over all rationales."),
    Metric("train/advantage_abs", "drivers", "reward", "", "Mean absolute advantage."),
    Metric("train/team_credit_abs", "drivers", "reward", "", "Mean absolute team credit.", "objective.team_credit > 0"),
    Metric("train/chosen_gain", "drivers", "reward", "", "Chosen reward minus the mean.", "method=rejection_sft"),
    Metric("rollout/extra_rounds", "drivers", "rounds", "lower", "Rounds of exchange.", "objective.dynamic_sampling"),
    Metric("rollout/zero_spread_dropped", "drivers", "instances", "", "Exchanged.", "objective.dynamic_sampling"),
    Metric("rollout/zero_spread_left", "drivers", "instances", "lower", "Left.", "objective.dynamic_sampling"),
    Metric("rollout/stored", "drivers", "instances", "", "Instances that an earlier step wrote.", "objective.replay"),
    Metric("curriculum/difficulty_drawn", "drivers", "share", "", "Mean over the step's instances.", _CURRICULUM),
    Metric("curriculum/difficulty", "drivers", "share", "lower", "Mean over all instances seen.", _CURRICULUM),
    Metric("curriculum/seen_share", "drivers", "share", "higher", "Instances seen so far.", _CURRICULUM),
    # ---- rationales: what is written?
    Metric("rollout/tokens_mean", "rationales", "tokens", "", "Mean length of the trained rationales."),
    Metric("rollout/tokens_max", "rationales", "tokens", "", "Length of the longest trained rationale."),
    Metric("rollout/truncated_share", "rationales", "share", "lower", "Rationales cut at rollout.max_tokens."),
    Metric("rollout/most_common_share", "rationales", "share", "lower", "Instances with the most common rationale."),
    Metric("rollout/entropy", "rationales", "nats", "", "Estimate: mean -log-prob of a written token."),
    Metric("rollout/tokens", "rationales", "tokens", "", "All tokens of trained rationales."),
    Metric(
        "rollout/tail_share",
        "rationales",
        "share",
        "lower",
        "1 - (length that 90 % of all rationales do not exceed) / (the longest): decoding steps left to a tenth.",
    ),
    Metric("rollout/token_budget", "rationales", "tokens", "", "Longest that the step allowed.", "rollout.tail"),
    Metric("rollout/prompts_cut", "rationales", "texts", "lower", "Texts too long for their prompt.", _BASELINE),
    # ---- geometry: how do the embeddings lie?
    Metric("embed/cos_pos", "geometry", "cosine", "higher", "Mean cosine of a rationale with its own anchors."),
    Metric("embed/cos_neg", "geometry", "cosine", "lower", "Mean cosine with its own negatives."),
    Metric("embed/cos_random", "geometry", "cosine", "lower", "Mean cosine with other instances' anchors."),
    Metric("embed/effective_rank", "geometry", "", "higher", "Dimensions in use (Roy & Vetterli 2007); 1 is collapse."),
    Metric("embed/uniformity", "geometry", "nats", "lower", "Wang & Isola's; 0 is collapse."),
    Metric("embed/augmentation_overlap", "geometry", "", "lower", "Label-free quality of the augmentations."),
    # ---- stability: can the update be trusted?
    Metric("train/loss", "stability", "", "", "The loss that was minimised.", _BASELINE),
    Metric("train/pathwise", "stability", "reward", "lower", "Minus the mean reward at the update.", _PATHWISE),
    Metric("train/pathwise_norm", "stability", "", "", "Norm of the pathwise part of the gradient.", _PARTS),
    Metric("train/policy_gradient_norm", "stability", "", "", "Norm of the policy gradient.", _PARTS),
    Metric("train/gradient_cosine", "stability", "cosine", "", "Cosine of the two parts.", _PARTS),
    Metric("train/grad_norm", "stability", "", "", "Norm of the gradient before clipping.", _BASELINE),
    Metric("train/learning_rate", "stability", "", "", "Learning rate of the step's updates.", _BASELINE),
    Metric("train/skipped_updates", "stability", "updates", "lower", "Skipped so far: nan or inf.", _BASELINE),
    Metric("train/ratio", "stability", "", "near 1", "Probability ratio of present to old policy."),
    Metric("train/approx_kl", "stability", "nats", "near 0", "k3 estimate of the KL to the old policy, a token."),
    Metric("train/surrogate", "stability", "", "", "The surrogate loss without penalties."),
    Metric("train/clipped", "stability", "share", "lower", "Tokens whose ratio is clipped."),
    Metric("train/importance", "stability", "", "near 1", "Weight against the engine.", "objective.importance"),
    Metric("train/kl_reference", "stability", "nats", "", "KL to the reference, a token.", "objective.kl"),
    Metric("train/entropy", "stability", "nats", "", "Entropy per token.", "objective.entropy_coefficient > 0"),
    Metric(
        "rollout/staleness",
        "stability",
        "steps",
        "lower",
        "Age of the weights that wrote the trained rationales: 0 or 1.",
        "rollout.overlap=one_step",
    ),
    Metric("mismatch/logprob_abs_mean", "stability", "nats", "near 0", "|trainer - engine| log-prob, mean."),
    Metric("mismatch/logprob_abs_max", "stability", "nats", "near 0", "The same, largest."),
    Metric("mismatch/k3", "stability", "nats", "near 0", "Estimated KL(engine || trainer) a token."),
    Metric("mismatch/ratio_mean", "stability", "", "near 1", "trainer / engine probability of a token, mean."),
    Metric("mismatch/ratio_max", "stability", "", "near 1", "The same, largest."),
    Metric("mismatch/ess_token", "stability", "share", "near 1", "Effective sample size over tokens."),
    Metric("mismatch/ess_sequence", "stability", "share", "near 1", "Effective sample size over rationales."),
    Metric("mismatch/truncated_share", "stability", "share", "lower", "Tokens whose weight is capped."),
    Metric("mismatch/masked_share", "stability", "share", "lower", "Tokens without a finite engine log-prob."),
    Metric("mismatch/nonfinite", "stability", "tokens", "lower", "Their number."),
    # ---- cost: where do time and memory go?
    Metric("time/step", "cost", "s", "lower", "The whole step.", _BASELINE),
    Metric("time/rollout", "cost", "s", "lower", "The engine writes the step's rationales, whenever that is."),
    Metric("time/wait", "cost", "s", "lower", "Wait for the step written ahead.", "rollout.overlap=one_step"),
    Metric("time/score", "cost", "s", "lower", "Forwards for embeddings and log-probs.", _BASELINE),
    Metric("time/reward", "cost", "s", "lower", "Rewards and advantages."),
    Metric("time/update", "cost", "s", "lower", "Backward and optimizer.", _BASELINE),
    Metric("time/sync", "cost", "s", "lower", "Sending weights to the engine.", _BASELINE),
    Metric("time/evaluation_before", "cost", "s", "lower", "Held-out sets before training.", _HELDOUT),
    Metric("time/evaluation_during", "cost", "s", "lower", "Held-out, in training.", "evaluation.every_n_steps"),
    Metric("time/evolution", "cost", "s", "lower", "The evolution table.", "logger.evolution_every_n_steps"),
    Metric("perf/rationale_tokens_per_second", "cost", "tokens/s", "higher", "rollout/tokens / time/step."),
    Metric("perf/memory_planned_gib", "cost", "GiB", "", "Planned memory of one device.", _BASELINE),
    Metric("perf/memory_peak_gib", "cost", "GiB", "lower", "Peak memory since the start.", _BASELINE),
    Metric("perf/memory_reserved_gib", "cost", "GiB", "lower", "The same, by torch's allocator.", "a GPU"),
    Metric("perf/mfu", "cost", "share", "higher", "Model FLOPs of score and update / the device's peak.", "a GPU"),
    # ---- evaluation: by a job of its own
    Metric("mteb/<task>", "evaluation", "points", "higher", "Main score, or an average.", "job=evaluate"),
    Metric("mteb/category/<category>", "evaluation", "points", "higher", "Mean over its tasks.", "job=evaluate"),
    Metric("controls/<set>/<row>", "evaluation", "points", "", "Held-out figure of a mode or control.", _CONTROLS),
    Metric("controls/<set>/<row>/centred", "evaluation", "points", "", "The same, the mean removed.", _CONTROLS),
    Metric("general/<task>/<figure>", "evaluation", "", "", "General ability, see docs/evaluation.md.", "job=evaluate"),
)
"""Every name that a run logs, in the order in which it is shown."""


class UnlistedMetric(UserWarning):
    """A metric was logged whose name is not in `METRICS`."""


def check_listed(names: Iterable[str]) -> None:
    """Warn once of each name that is not in `METRICS`; tests turn the warning into an error."""
    unlisted = [name for name in names if find_metric(name) is None]
    if unlisted:
        warnings.warn(
            f"metric names that are not listed: {', '.join(unlisted)}. Add a line each to METRICS in "
            "grace_exp/tracking/metrics.py and run `python scripts/metrics_table.py`",
            UnlistedMetric,
            stacklevel=1,
        )


@cache
def find_metric(name: str) -> Metric | None:
    """Return the entry of a logged name, None if there is none; an exact name takes precedence over a pattern."""
    for side in SIDES:
        name = name.removeprefix(side)
    matching = [metric for metric in METRICS if metric.pattern.fullmatch(name)]
    return min(matching, key=lambda metric: "<" in metric.name, default=None)


def in_order(names: Iterable[str], section: Section | None = None) -> list[str]:
    """Return logged names in the order of the list, of one section or of all; unlisted names come last."""
    places = {metric.name: place for place, metric in enumerate(METRICS)}
    found = {name: find_metric(name) for name in names}
    chosen = [name for name, metric in found.items() if section is None or (metric and metric.section == section)]
    return sorted(chosen, key=lambda name: places[metric.name] if (metric := found[name]) else len(places))


def markdown_table() -> str:
    """Return the list as a page: a table for each section."""
    lines = [
        "# Metrics",
        "",
        "Written by `python scripts/metrics_table.py` from `METRICS` in `src/grace_exp/tracking/metrics.py`: edit it "
        "there.",
        "",
        "One row a step in `metrics.csv` and on W&B. A part in `<brackets>` stands for a name; `reward/<term>/...` "
        "also has the terms `total` and `final`. With `rollout.policy_role=both` a figure is the mean of both sides, "
        "and each side's own begins with `positive/` or `query/`. Columns `time/*` and `perf/*` vary with the "
        "machine; all others are equal in two runs of one seed.",
    ]
    for section, title in SECTIONS.items():
        lines += ["", f"## {title}", "", "| name | unit | good | meaning | logged with |", "|---|---|---|---|---|"]
        lines += [
            f"| `{metric.name}` | {metric.unit} | {metric.better} | {metric.meaning.replace('|', chr(92) + '|')} "
            f"| {metric.when or 'a reward'} |"
            for metric in METRICS
            if metric.section == section
        ]
    return "\n".join(lines) + "\n"
