"""What a rationale gets that ran out of tokens."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import TruncationConfig


def apply_truncation(totals: Tensor, truncated: Tensor, config: TruncationConfig) -> tuple[Tensor, Tensor]:
    """Replace the totals of truncated rationales as configured.

    - `absolute` (GRACE, arXiv 2510.04506): `value`. Where totals lie below it, running out of tokens is rewarded.
    - `group_relative`: the lowest total of the group's complete rationales less `margin`: below the group's mean, so
      that no baseline within the group turns it into a gain. Where all of a group are truncated they are equal, at its
      lowest total less `margin`, and none has an advantage.
    - `mask`: unchanged and not kept: for objectives to leave out of baseline and loss (DAPO's over-long filtering,
      arXiv 2503.14476).
    - `none`: unchanged.

    Args:
        totals: `[groups, K]`.
        truncated: `[groups, K]` bool.
        config: Chooses the rule.

    Returns:
        Rewards `[groups, K]`, and which rationales take part in baseline and loss, `[groups, K]` bool.
    """
    everyone = torch.ones_like(truncated)
    match config.mode:
        case "absolute":
            return torch.where(truncated, config.value, totals), everyone
        case "group_relative":
            # In a group without a complete rationale the truncated ones are all there is.
            complete = ~truncated | truncated.all(dim=1, keepdim=True)
            worst = totals.masked_fill(~complete, math.inf).amin(dim=1, keepdim=True)
            return torch.where(truncated, worst - config.margin, totals), everyone
        case "mask":
            return totals, ~truncated
        case "none":
            return totals, everyone
