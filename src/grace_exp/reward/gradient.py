"""The gradient of the reward with respect to the embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grace_exp.config.reward import RewardConfig
from grace_exp.reward.composer import compose_reward
from grace_exp.reward.inputs import RewardInputs

EMBEDDED = ("rollouts_GKH", "anchors_GAH", "negatives_GMH", "swapped_GKH", "bare_GH")
"""Fields of `RewardInputs` that hold embeddings."""


@dataclass(frozen=True, eq=False)
class RewardGradients:
    """A weighted sum of rewards, and its gradient.

    Attributes:
        value: The sum, `[]` float32.
        fields: The gradient by each given field of `EMBEDDED`, in the field's shape, float32; zero where a negative is
            padding.
    """

    value: Tensor
    fields: Mapping[str, Tensor]


def reward_gradients(inputs: RewardInputs, config: RewardConfig, weights_GK: Tensor) -> RewardGradients:
    """Return the sum of weight x final reward, and its gradient.

    Every embedding counts wherever it enters. A rollout enters its own reward, its siblings' `consistency`, and the
    rewards of other groups as a rival. An anchor enters its own group's rewards, and other groups' as a rival. The
    truncation rule is part of the reward: under `absolute` the reward of a truncated rationale has no gradient.
    `format`, `length` and ranks (`log_rank`) have none.

    Args:
        inputs: As for `compose_reward`.
        config: Settings of the reward.
        weights_GK: Weight of each rollout's reward, `[groups, K]`; for the mean: 1 / (number of kept) if kept, else 0.

    Returns:
        The sum and its gradients, detached from the graph.

    Raises:
        ValueError: As `compose_reward`.
    """
    given = {name: tensor for name in EMBEDDED if (tensor := getattr(inputs, name)) is not None}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    with torch.enable_grad():
        reward = compose_reward(replace(inputs, **leaves, differentiable=True), config)
        value = (weights_GK * reward.final_GK).sum()
    found = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    if value.requires_grad:  # false for a reward of `format`, `length` and `log_rank` only
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        found |= {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}
    return RewardGradients(value.detach(), found)
