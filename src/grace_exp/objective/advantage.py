"""Parts of advantages that algorithms share: baselines and scales over the kept rationales."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.loss_inputs import AdvantageInputs

STD_EPSILON = 1e-4
"""Added to a standard deviation, in units of the reward, so that rewards that differ only by rounding do not become
advantages of order 1. It is small against the spread of totals (0.1 to 10 at temperature 0.1)."""


def group_centred(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Return rewards minus the mean of their group.

    Args:
        rewards_GK: `[groups, K]`; any value where not kept.
        kept_GK: `[groups, K]` bool.

    Returns:
        `[groups, K]`, with mean 0 over each group's kept; exactly 0 if these are equal, and where not kept.
    """
    # Subtract the first kept rollout before the mean, because the mean of equal floats may differ from that float.
    first_G1 = rewards_GK.gather(1, kept_GK.to(torch.uint8).argmax(dim=1, keepdim=True))
    offsets_GK = torch.where(kept_GK, rewards_GK - first_G1, 0.0)
    centred_GK = offsets_GK - offsets_GK.sum(dim=1, keepdim=True) / kept_GK.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(kept_GK, centred_GK, 0.0)


def leave_one_out(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Return rewards minus the mean of the others of their group: n / (n - 1) times the centred rewards.

    Args:
        rewards_GK: `[groups, K]`; any value where not kept.
        kept_GK: `[groups, K]` bool.

    Returns:
        `[groups, K]`; 0 in groups with at most one kept, and where not kept.
    """
    count_G1 = kept_GK.sum(dim=1, keepdim=True).to(rewards_GK.dtype)
    return group_centred(rewards_GK, kept_GK) * count_G1 / (count_G1 - 1).clamp(min=1)


def scaled(values_GK: Tensor, kept_GK: Tensor, scale: Literal["none", "group_std", "batch_std"]) -> Tensor:
    """Return values divided by their spread.

    Args:
        values_GK: Rewards minus a baseline, `[groups, K]`, 0 where not kept. They must be of all groups of the step,
            because batch_std over one process's share would differ between processes.
        kept_GK: `[groups, K]` bool.
        scale: none; group_std or batch_std: the root mean square over the kept of the group or of the batch. It equals
            the population's standard deviation if the baseline is the mean.

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
    """Return rewards centred per group and scaled by `advantage_scale`, `[groups, K]`, as the GRPO family uses them."""
    return scaled(group_centred(inputs.rewards_GK, inputs.kept_GK), inputs.kept_GK, config.advantage_scale)
