"""Terms, weighted and added."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.reward import RewardConfig
from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms import TERMS
from grace_exp.reward.truncation import apply_truncation


@dataclass(frozen=True, eq=False)
class Reward:
    """The reward of every rollout and what it is made of.

    Attributes:
        terms: Unweighted values of each configured term, `[groups, K]` float32, in the order of `TermsConfig`.
        scales: What a term is multiplied by in the total: weight / temperature.
        total: Sum of scale x term, `[groups, K]` float32.
        final: `total` after the truncation rule, `[groups, K]` float32; what advantages are made of.
    """

    terms: Mapping[str, Tensor]
    scales: Mapping[str, float]
    total: Tensor
    final: Tensor

    def metrics(self) -> dict[str, float]:
        """Figures to log: `reward/<name>/{mean,std,within_group_std}` for each term, `total` and `final`.

        Terms are in the units of the total (scale x term), so that they compare with it and one another. `std` is over
        all rollouts; `within_group_std` is the mean over groups of the standard deviation over K. Both are of the
        population. A term whose `within_group_std` is zero trains nothing, whatever its weight.
        """
        parts = {name: values.double() * self.scales[name] for name, values in self.terms.items()}
        parts |= {"total": self.total.double(), "final": self.final.double()}
        names, figures = [], []
        for name, values in parts.items():
            within = values.std(dim=1, correction=0).mean()
            names += [f"reward/{name}/{kind}" for kind in ("mean", "std", "within_group_std")]
            figures += [values.mean(), values.std(correction=0), within]
        return dict(zip(names, torch.stack(figures).tolist(), strict=True))


def compose_reward(inputs: RewardInputs, config: RewardConfig) -> Reward:
    """Compute the configured terms, their weighted sum, and the truncation rule.

    total = sum of weight x term, divided by temperature. In GRACE (arXiv 2510.04506) positive and negative weigh 1,
    consistency and hard_negative 0.2; its tau = 10 is a temperature of 0.1 here.

    Args:
        inputs: Embeddings of all groups of the step: those of one process alone give another reward.
        config: Terms, weights, temperature, truncation.

    Returns:
        Reward: Values without gradient.
    """
    configured = {name: term for name in TERMS if (term := getattr(config.terms, name)) is not None}
    terms = {name: TERMS[name](inputs, term) for name, term in configured.items()}
    scales = {name: term.weight / config.temperature for name, term in configured.items()}
    total = torch.stack([scales[name] * values for name, values in terms.items()]).sum(dim=0)
    final = apply_truncation(total, inputs.truncated, config.truncation)
    return Reward(
        terms={name: values.float() for name, values in terms.items()},
        scales=scales,
        total=total.float(),
        final=final.float(),
    )
