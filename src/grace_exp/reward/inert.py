"""Report terms that train nothing, early in the run."""

from collections.abc import Mapping
from typing import Literal

from grace_exp.config.reward import WITHOUT_GRADIENT, RewardConfig

NO_SHARE = 1e-6
"""A share below this is rounding."""
RIVALRY = ("hard_negative", "infonce")
"""Terms in which other texts' rationales may be rivals of a text."""
REASONS = {
    "negative": "Check that instances have negatives at all (data.negatives).",
    "consistency": "With two rationales (rollout.group_size=2) each is as near to the other as the other to it.",
    "hard_negative": "It compares the instances of a batch; check that there is more than one (job.batch_size).",
    "infonce": "It saturates if every rationale finds its own anchor: raise its temperature.",
    "log_rank": "Every rationale has the same rank; in a larger batch (job.batch_size) ranks differ more.",
    "format": "All have the same form: the prompt may not ask for <think></think>, or nothing is left to learn.",
    "length": "All cost the same: with relative_to=budget those within `free` cost 0, those beyond the budget 1.",
}
"""The usual reason why a term is the same for a whole group."""


class InertTerms:
    """Watches the terms' shares in the advantages, and reports each term once that has had none for long.

    A sweep over the weight of an inert term has no effect; the paper's negatives are such terms.
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        trained: Literal["positive", "query"] = "positive",
        pathwise: bool = False,
        team_credit: bool = False,
        patience: int = 10,
    ) -> None:
        """Start watching.

        Args:
            config: Settings of the reward, with the terms and weights.
            trained: Which side's rationales are trained.
            pathwise: Whether terms also train through the embeddings; terms that read embeddings then need no share.
            team_credit: Whether a rationale's advantage includes its effect on other texts' rewards; terms in which it
                is a rival there then need no share.
            patience: Number of steps in a row without a share after which a term is reported.
        """
        terms = {name: term for name, term in vars(config.terms).items() if term is not None}
        self._anchors = {name: getattr(term, "anchor", "rollout") for name, term in terms.items()}
        watched = [name for name, term in terms.items() if term.weight != 0]
        if pathwise:
            watched = [name for name in watched if name in WITHOUT_GRADIENT]
        if team_credit:
            watched = [name for name in watched if name not in RIVALRY]
        self._steps = dict.fromkeys(watched, 0)
        self._trained = trained
        self._patience = patience

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        """Add the metrics of a step.

        Args:
            metrics: `Reward.metrics()` of the step.

        Returns:
            One text for each term whose share has now been 0 for `patience` steps; each term is reported once.
        """
        found = []
        for name in list(self._steps):
            self._steps[name] += 1
            if abs(metrics[f"reward/{name}/advantage_share"]) > NO_SHARE:
                self._steps[name] = 0
            elif self._steps[name] == self._patience:
                del self._steps[name]
                varies = metrics[f"reward/{name}/within_group_std"] > NO_SHARE
                found.append(
                    f"reward.terms.{name} has had no share in the advantages for {self._patience} steps, whatever its "
                    f"weight: {self._reason(name, varies)}"
                )
        return found

    def _reason(self, name: str, varies: bool) -> str:
        if varies:
            return (
                "it differs between the rationales of a group, but the total does not (see reward/total/"
                "within_group_std), or no two rationales of a group are kept (see reward/truncation)"
            )
        same = "it is the same for all rationales of a group"
        if self._trained == "positive" and self._anchors[name] in ("query", "auto"):
            return (
                f"with anchor={self._anchors[name]} it does not depend on the rationale, so {same}. "
                f"Set reward.terms.{name}.anchor=rollout, or reward.terms.{name}=null"
            )
        return f"{same}. {REASONS.get(name, '')}".rstrip()
