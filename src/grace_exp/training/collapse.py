"""Detect the collapse of a run from the metrics of its steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from grace_exp.config.callbacks import WatchdogConfig

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Sign:
    """A sign of one kind of collapse.

    Attributes:
        kind: Name of the collapse.
        metric: Metric that shows it.
        crossed: Returns whether a step's metrics cross the threshold.
        message: Returns the message for the last of these steps.
    """

    kind: str
    metric: str
    crossed: Callable[[Figures], bool]
    message: Callable[[Figures], str]


class Collapse:
    """Observes steps, and reports each kind of collapse once, when it has lasted for `patience` steps."""

    def __init__(self, config: WatchdogConfig, *, truncation: bool) -> None:
        """Start before the first step.

        Args:
            config: The thresholds.
            truncation: Whether rationales that are cut get another reward (`reward.truncation.mode`).
        """
        self._config = config
        self._start: dict[str, list[float]] = {"embed/effective_rank": [], "rollout/entropy": []}
        self._signs = self._watched(truncation)
        self._steps = dict.fromkeys((sign.kind for sign in self._signs), 0)
        self._said: set[str] = set()

    def observe(self, figures: Figures) -> list[tuple[str, str]]:
        """Observe a step; a metric that is missing or nan is ignored.

        Returns:
            (kind, message) of every collapse that is found in this step.
        """
        found = []
        for sign in self._signs:
            value = figures.get(sign.metric)
            if value is None or value != value or sign.kind in self._said:
                continue
            self._steps[sign.kind] = self._steps[sign.kind] + 1 if sign.crossed(figures) else 0
            if self._steps[sign.kind] == self._config.patience:
                self._said.add(sign.kind)
                found.append((sign.kind, f"{sign.message(figures)}, {self._config.patience} steps in a row."))
        for name, values in self._start.items():
            if len(values) < self._config.start_steps and figures.get(name) is not None:
                values.append(figures[name])
        return found

    def _from_start(self, name: str, share: float) -> Callable[[Figures], bool]:
        values = self._start[name]
        return lambda f: len(values) == self._config.start_steps and f[name] < share * self._mean(name)

    def _mean(self, name: str) -> float:
        return sum(self._start[name]) / len(self._start[name])

    def _watched(self, truncation: bool) -> list[Sign]:
        config, signs = self._config, list[Sign]()
        rank, entropy = "embed/effective_rank", "rollout/entropy"
        if (rank_share := config.min_rank_share) is not None:
            signs.append(
                Sign(
                    "effective_rank",
                    rank,
                    self._from_start(rank, rank_share),
                    lambda f: (
                        f"embeddings fall together: their effective rank is {f[rank]:.2f}, below {rank_share:g} of "
                        f"the {self._mean(rank):.2f} of the start"
                    ),
                )
            )
        if (entropy_share := config.min_entropy_share) is not None:
            signs.append(
                Sign(
                    "entropy",
                    entropy,
                    self._from_start(entropy, entropy_share),
                    lambda f: (
                        f"the policy hardly samples any more: {f[entropy]:.3f} nats a token, below {entropy_share:g} "
                        f"of the {self._mean(entropy):.3f} of the start"
                    ),
                )
            )
        limits = [
            ("empty", "rollout/tokens_mean", config.min_tokens, -1, "rationales shrink to nothing: {:.1f} tokens"),
            (
                "truncated",
                "rollout/truncated_share",
                config.max_truncated_share if truncation else None,
                1,
                "nearly all rationales end at the limit: a share of {:.2f} is cut",
            ),
            (
                "common_rationale",
                "rollout/most_common_share",
                config.max_common_share,
                1,
                "one rationale for many texts: a share of {:.2f} of the instances has it",
            ),
            (
                "no_spread",
                "reward/zero_spread_share",
                config.max_zero_spread_share,
                1,
                "rewards do not differ within a share of {:.2f} of the groups",
            ),
            (
                "mismatch",
                "mismatch/k3",
                config.max_mismatch,
                1,
                "the engine drifts from the policy: mismatch/k3 is {:.3g} nats a token",
            ),
        ]
        for kind, metric, limit, way, text in limits:
            if limit is not None:
                signs.append(_limit(kind, metric, limit, way, text))
        return signs


def _limit(kind: str, metric: str, limit: float, way: int, text: str) -> Sign:
    beyond = "below" if way < 0 else "above"
    return Sign(
        kind,
        metric,
        lambda f: way * (f[metric] - limit) > 0,
        lambda f: f"{text.format(f[metric])}, {beyond} {limit:g}",
    )
