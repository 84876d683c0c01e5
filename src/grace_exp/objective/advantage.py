"""What algorithms build their advantages from: baselines and scales that leave out what is not kept."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.loss_inputs import AdvantageInputs

STD_EPSILON = 1e-4
"""Added to a standard deviation, in units of reward: rewards that differ by rounding only must not become advantages of
order 1. Small against the spread of totals (0.1 to 10 at temperature 0.1)."""


def group_centred(rewards: Tensor, kept: Tensor) -> Tensor:
    """Rewards less the mean of their group.

    Args:
        rewards: `[groups, K]`; anything where not kept.
        kept: `[groups, K]` bool.

    Returns:
        `[groups, K]`, of mean zero over each group's kept; exactly zero where these are equal, and where not kept.
    """
    # Offsets from the first kept rollout before the mean: the mean of equal floats need not be that float.
    first = rewards.gather(1, kept.to(torch.uint8).argmax(dim=1, keepdim=True))
    offsets = torch.where(kept, rewards - first, 0.0)
    centred = offsets - offsets.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(kept, centred, 0.0)


def leave_one_out(rewards: Tensor, kept: Tensor) -> Tensor:
    """Rewards less the mean of the others of their group: n / (n - 1) times the centred ones.

    Args:
        rewards: `[groups, K]`; anything where not kept.
        kept: `[groups, K]` bool.

    Returns:
        `[groups, K]`; zero in groups of which one at most is kept, and where not kept.
    """
    count = kept.sum(dim=1, keepdim=True).to(rewards.dtype)
    return group_centred(rewards, kept) * count / (count - 1).clamp(min=1)


def scaled(values: Tensor, kept: Tensor, scale: Literal["none", "group_std", "batch_std"]) -> Tensor:
    """Rewards less a baseline, divided by their spread.

    Args:
        values: `[groups, K]`, zero where not kept: of all groups of the step, because batch_std of one process's share
            would differ between processes.
        kept: `[groups, K]` bool.
        scale: none; group_std or batch_std: the root mean square over the kept of the group or of the batch. That is
            the population's standard deviation where the baseline is the mean.

    Returns:
        `[groups, K]`.
    """
    if scale == "none":
        return values
    square = values.square()
    if scale == "group_std":
        variance = square.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        variance = square.sum() / kept.sum().clamp(min=1)
    return values / (variance.sqrt() + STD_EPSILON)


def group_relative(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Centred per group and scaled by `advantage_scale`, `[groups, K]`: the advantages of the GRPO family."""
    return scaled(group_centred(inputs.rewards, inputs.kept), inputs.kept, config.advantage_scale)
