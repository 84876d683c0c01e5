"""What algorithms build their advantages from: baselines and scales that leave out what is not kept."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.loss_inputs import AdvantageInputs

STD_EPSILON = 1e-4
"""Added to a standard deviation, in units of reward: rewards that differ by rounding only must not become advantages of
order 1. Small against the spread of totals (0.1 to 10 at temperature 0.1)."""


def group_centred(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Rewards less the mean of their group.

    Args:
        rewards_GK: `[groups, K]`; anything where not kept.
        kept_GK: `[groups, K]` bool.

    Returns:
        `[groups, K]`, of mean zero over each group's kept; exactly zero where these are equal, and where not kept.
    """
    # Offsets from the first kept rollout before the mean: the mean of equal floats need not be that float.
    first_G1 = rewards_GK.gather(1, kept_GK.to(torch.uint8).argmax(dim=1, keepdim=True))
    offsets_GK = torch.where(kept_GK, rewards_GK - first_G1, 0.0)
    centred_GK = offsets_GK - offsets_GK.sum(dim=1, keepdim=True) / kept_GK.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(kept_GK, centred_GK, 0.0)


def leave_one_out(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Rewards less the mean of the others of their group: n / (n - 1) times the centred ones.

    Args:
        rewards_GK: `[groups, K]`; anything where not kept.
        kept_GK: `[groups, K]` bool.

    Returns:
        `[groups, K]`; zero in groups of which one at most is kept, and where not kept.
    """
    count_G1 = kept_GK.sum(dim=1, keepdim=True).to(rewards_GK.dtype)
    return group_centred(rewards_GK, kept_GK) * count_G1 / (count_G1 - 1).clamp(min=1)


def scaled(values_GK: Tensor, kept_GK: Tensor, scale: Literal["none", "group_std", "batch_std"]) -> Tensor:
    """Rewards less a baseline, divided by their spread.

    Args:
        values_GK: `[groups, K]`, zero where not kept: of all groups of the step, because batch_std of one process's
            share would differ between processes.
        kept_GK: `[groups, K]` bool.
        scale: none; group_std or batch_std: the root mean square over the kept of the group or of the batch. That is
            the population's standard deviation where the baseline is the mean.

    Returns:
        `[groups, K]`.
    """
    if scale == "none":
        return values_GK
    square_GK = values_GK.square()
    if scale == "group_std":
        variance = square_GK.sum(dim=1, keepdim=True) / kept_GK.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        variance = square_GK.sum() / kept_GK.sum().clamp(min=1)
    return values_GK / (variance.sqrt() + STD_EPSILON)


def group_relative(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Centred per group and scaled by `advantage_scale`, `[groups, K]`: the advantages of the GRPO family."""
    return scaled(group_centred(inputs.rewards_GK, inputs.kept_GK), inputs.kept_GK, config.advantage_scale)
