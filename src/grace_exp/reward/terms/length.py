"""Rewards short rationales."""

import torch
from torch import Tensor

from grace_exp.config.reward import LengthConfig
from grace_exp.reward.inputs import RewardInputs


def length_term(inputs: RewardInputs, config: LengthConfig) -> Tensor:
    """The cost of a rationale's length.

    - `relative_to: budget` (soft over-long punishment of DAPO, arXiv 2503.14476): with budget L and f = free x L,
      0 up to f tokens, -(length - f) / (L - f) up to L, and -1 beyond.
    - `relative_to: group` (length reward of Kimi k1.5, arXiv 2501.12599): 0.5 - (length - min) / (max - min), with min
      and max over the group, so it acts at any length. 0 if all lengths are equal.

    Args:
        inputs: Only `lengths_GK` is read, and `max_tokens` if the settings have no budget.
        config: The formula and its budget.

    Returns:
        `[groups, K]` in [-1, 0] or [-0.5, 0.5].

    Raises:
        ValueError: Neither `config.budget` nor `inputs.max_tokens` is given.
    """
    lengths_GK = inputs.lengths_GK.to(torch.float64)
    if config.relative_to == "group":
        shortest_G1, longest_G1 = lengths_GK.amin(dim=1, keepdim=True), lengths_GK.amax(dim=1, keepdim=True)
        spread_G1 = longest_G1 - shortest_G1
        return torch.where(spread_G1 > 0, 0.5 - (lengths_GK - shortest_G1) / spread_G1.clamp_min(1), 0.0)
    budget = config.budget or inputs.max_tokens
    if budget is None:
        raise ValueError("the length term needs max_tokens, or its own budget")
    free = config.free * budget
    return -((lengths_GK - free) / (budget - free)).clamp(0.0, 1.0)
