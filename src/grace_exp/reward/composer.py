"""Compute the reward: the weighted sum of the terms."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.reward import RewardConfig
from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.terms import TERMS
from grace_exp.reward.truncation import apply_truncation

EXTRA_INPUTS = {"format": {"well_formed"}, "faithfulness": {"swapped", "bare"}}
"""Fields of `RewardInputs` that take time to fill, by the term that reads them."""


@dataclass(frozen=True, eq=False)
class Reward:
    """The reward of every rollout, and its parts.

    Attributes:
        terms: Unweighted values of each configured term, `[groups, K]` float32, in the order of `TermsConfig`.
        scales: Factor of each term in the total: weight / temperature.
        total_GK: Sum of scale x term, `[groups, K]` float32.
        final_GK: `total` after the truncation rule, `[groups, K]` float32; advantages are computed from it.
        kept_GK: False for rationales that are left out of baseline and loss, `[groups, K]` bool.
    """

    terms: Mapping[str, Tensor]
    scales: Mapping[str, float]
    total_GK: Tensor
    final_GK: Tensor
    kept_GK: Tensor

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log.

        - `reward/<name>/{mean,std,within_group_std}` for each term, `total` and `final`. Terms are in the units of the
          total (scale x term), so that they can be compared with it and with each other; terms of weight 0 are in their
          own units. `std` is over all rollouts; `within_group_std` is the mean over groups of the standard deviation
          over K. Both are population standard deviations. A term with `within_group_std` 0 trains nothing, whatever its
          weight.
        - `reward/<term>/advantage_share`: cov(scale x term, total) / var(total) after both are centred on their group's
          mean over kept rationales. Shares sum to 1 (a negative one means that the term works against the others), or
          are all 0 if no total differs within its group.
        - `reward/zero_spread_share`: share of groups whose kept rationales have equal `final`: they train nothing.
        """
        parts = {name: values_GK.double() * (self.scales[name] or 1.0) for name, values_GK in self.terms.items()}
        parts |= {"total": self.total_GK.double(), "final": self.final_GK.double()}
        names, figures = [], []
        for name, values_GK in parts.items():
            within_group_std = values_GK.std(dim=1, correction=0).mean()
            names += [f"reward/{name}/{kind}" for kind in ("mean", "std", "within_group_std")]
            figures += [values_GK.mean(), values_GK.std(correction=0), within_group_std]
        for name, share in self._advantage_shares().items():
            names.append(f"reward/{name}/advantage_share")
            figures.append(share)
        names.append("reward/zero_spread_share")
        figures.append((self._centred(self.final_GK) == 0).all(dim=1).double().mean())
        return dict(zip(names, torch.stack(figures).tolist(), strict=True))

    def _advantage_shares(self) -> dict[str, Tensor]:
        # Centred before scaling: float64 holds sums of equal float32 values exactly, so an inert term is exactly 0.
        parts = {name: self._centred(values_GK) * self.scales[name] for name, values_GK in self.terms.items()}
        total_GK = torch.stack(list(parts.values())).sum(dim=0)
        variance = total_GK.square().sum()
        spread = variance > 0
        return {
            name: torch.where(spread, (part_GK * total_GK).sum() / variance.where(spread, 1.0), 0.0)
            for name, part_GK in parts.items()
        }

    def _centred(self, values_GK: Tensor) -> Tensor:
        """Return values minus the mean over the group's kept rationales, 0 for the others, `[groups, K]` float64."""
        kept_GK = self.kept_GK.double()
        mean_G1 = (values_GK * kept_GK).sum(dim=1, keepdim=True) / kept_GK.sum(dim=1, keepdim=True).clamp_min(1)
        centred_GK: Tensor = (values_GK - mean_G1) * kept_GK
        return centred_GK


def compose_reward(inputs: RewardInputs, config: RewardConfig) -> Reward:
    """Compute the configured terms, their weighted sum, and the truncation rule.

    total = sum of weight x term, divided by temperature. In GRACE (arXiv 2510.04506) positive and negative weigh 1,
    consistency and hard_negative 0.2; its tau = 10 is a temperature of 0.1 here.

    Args:
        inputs: Embeddings of all groups of the step; those of one process alone would give another reward.
        config: Terms, weights, temperature, truncation.

    Returns:
        Reward without gradient, unless `inputs.differentiable` is set.

    Raises:
        ValueError: `inputs` lacks a field of `required_inputs` that a term reads.
    """
    configured = {name: term for name in TERMS if (term := getattr(config.terms, name)) is not None}
    terms = {name: TERMS[name](inputs, term) for name, term in configured.items()}
    scales = {name: term.weight / config.temperature for name, term in configured.items()}
    total_GK = torch.stack([scales[name] * values_GK for name, values_GK in terms.items()]).sum(dim=0)
    final_GK, kept_GK = apply_truncation(total_GK, inputs.truncated_GK, config.truncation)
    return Reward(
        terms={name: values_GK.float() for name, values_GK in terms.items()},
        scales=scales,
        total_GK=total_GK.float(),
        final_GK=final_GK.float(),
        kept_GK=kept_GK,
    )


def required_inputs(config: RewardConfig) -> set[str]:
    """Return the optional fields of `RewardInputs` that the terms read: of `well_formed`, `swapped`, `bare`.

    `swapped` implies `swapped_from`. A term of weight 0 is computed and logged, so it needs its fields too.
    """
    built_in = {n for term, names in EXTRA_INPUTS.items() if getattr(config.terms, term) is not None for n in names}
    return built_in | set(config.terms.custom.needs if config.terms.custom is not None else ())
