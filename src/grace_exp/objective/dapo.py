"""DAPO: GRPO with a higher upper clip, the token mean, a soft punishment of length, and only groups that teach.

    r_i   = reward + overlong_i
    A_i   = (r_i - mean of the group's r) / std of the group's r
    loss  = - min(ratio_t A_i, clip(ratio_t, 1 - 0.2, 1 + 0.28) A_i), token mean

Source: arXiv 2503.14476, equations 8 to 13. Every algorithm may use these parts; the preset sets them.
"""

import torch
from torch import Tensor

from grace_exp.config.objective import OverlongConfig
from grace_exp.objective.advantage import group_relative
from grace_exp.objective.loss_inputs import Algorithm
from grace_exp.objective.surrogate import clipped_loss

ALGORITHM = Algorithm(advantages=group_relative, loss=clipped_loss)


def overlong_punishment(lengths_GK: Tensor, max_tokens: int, config: OverlongConfig) -> Tensor:
    """Return what is added to a reward for its rationale's length (equation 13).

    Args:
        lengths_GK: `[groups, K]` tokens.
        max_tokens: The limit.
        config: The margin before the limit, and the punishment at it.

    Returns:
        `[groups, K]` float64: 0 up to the margin, then falling linearly to -penalty at the limit.
    """
    margin = config.share * max_tokens
    return config.penalty * ((max_tokens - margin - lengths_GK.double()) / margin).clamp(-1.0, 0.0)


def informative_groups(rewards_GK: Tensor, kept_GK: Tensor) -> Tensor:
    """Return which groups have kept rewards that differ; the others have advantages of 0 (equation 11).

    Args:
        rewards_GK: `[groups, K]`.
        kept_GK: `[groups, K]` bool.

    Returns:
        `[groups]` bool.
    """
    highest_G = torch.where(kept_GK, rewards_GK, -torch.inf).amax(dim=1)
    lowest_G = torch.where(kept_GK, rewards_GK, torch.inf).amin(dim=1)
    return highest_G > lowest_G
