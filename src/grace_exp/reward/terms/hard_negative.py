"""Instances of the batch far from one another."""

import torch
from torch import Tensor

from grace_exp.config.reward import HardNegativeConfig
from grace_exp.reward.inputs import RewardInputs


def hard_negative_term(inputs: RewardInputs, config: HardNegativeConfig) -> Tensor:
    """Minus the mean similarity to the other groups (GRACE, arXiv 2510.04506, and its released code).

    supervised: from the query to each other group's nearest rollout. It is the same for every rollout of a group, so
    it moves rewards and, untruncated, no advantage. unsupervised: from each rollout to each other group's query.

    Args:
        inputs: Embeddings.
        config: Chooses the formula.

    Returns:
        `[groups, K]` in [-1, 1]; zero with one group.
    """
    groups, samples = inputs.truncated.shape
    if groups == 1:
        return torch.zeros_like(inputs.unit_rollouts[..., 0])
    if config.formula == "supervised":
        nearest = inputs.rollouts_to_queries.amax(dim=1).T  # [query's group, rollouts' group]
        similarity = nearest.masked_fill(inputs.same_group, 0.0).sum(-1)[:, None].expand(groups, samples)
    else:
        similarity = inputs.rollouts_to_queries.masked_fill(inputs.same_group[:, None], 0.0).sum(-1)
    return -similarity / (groups - 1)
