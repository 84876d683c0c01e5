"""Rewards relative to their group."""

from typing import Literal

from torch import Tensor

STD_EPSILON = 1e-4
"""Added to a standard deviation, in units of reward: rewards that differ by rounding only must not become advantages of
order 1. Small against the spread of totals (0.1 to 10 at temperature 0.1)."""


def group_advantages(rewards: Tensor, scale: Literal["none", "group_std", "batch_std"]) -> Tensor:
    """Centre rewards per group, then scale them.

    Args:
        rewards: `[groups, K]`, all groups of the step: batch_std of one process's share would differ between processes.
        scale: none (GRACE; Dr. GRPO, arXiv 2503.20783), group_std (GRPO, arXiv 2402.03300), or batch_std: one standard
            deviation, of the centred values over the batch, which leaves the groups' relative weight alone. Standard
            deviations are of the population.

    Returns:
        `[groups, K]`, of mean zero in each group; exactly zero where a group's rewards are equal, and where K is 1.
    """
    # Offsets from the first rollout before the mean: the mean of K equal floats need not be that float.
    offsets = rewards - rewards[:, :1]
    centred = offsets - offsets.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    square = centred.square()
    variance = square.mean(dim=1, keepdim=True) if scale == "group_std" else square.mean()
    return centred / (variance.sqrt() + STD_EPSILON)
