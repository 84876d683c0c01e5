"""The reward of a rationale that ran out of tokens."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import TruncationConfig


def apply_truncation(totals_GK: Tensor, truncated_GK: Tensor, config: TruncationConfig) -> tuple[Tensor, Tensor]:
    """Replace the totals of truncated rationales as configured.

    - `absolute` (GRACE, arXiv 2510.04506): `value`. If totals lie below it, running out of tokens is rewarded.
    - `group_relative`: the lowest total of the group's complete rationales minus `margin`. It lies below the group's
      mean, so no baseline within the group turns it into a gain. If all rationales of a group are truncated, each gets
      the group's lowest total minus `margin`, and none has an advantage.
    - `mask`: unchanged and not kept: objectives leave it out of baseline and loss (DAPO's over-long filtering,
      arXiv 2503.14476).
    - `none`: unchanged.

    Args:
        totals_GK: `[groups, K]`.
        truncated_GK: `[groups, K]` bool.
        config: The rule.

    Returns:
        Rewards `[groups, K]`, and which rationales are used in baseline and loss, `[groups, K]` bool.
    """
    all_GK = torch.ones_like(truncated_GK)
    match config.mode:
        case "absolute":
            return torch.where(truncated_GK, config.value, totals_GK), all_GK
        case "group_relative":
            # A group without a complete rationale has only its truncated ones to compare with.
            complete_GK = ~truncated_GK | truncated_GK.all(dim=1, keepdim=True)
            worst_G1 = totals_GK.masked_fill(~complete_GK, math.inf).amin(dim=1, keepdim=True)
            return torch.where(truncated_GK, worst_G1 - config.margin, totals_GK), all_GK
        case "mask":
            return totals_GK, ~truncated_GK
        case "none":
            return totals_GK, all_GK
