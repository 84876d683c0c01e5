"""What a rationale gets that ran out of tokens."""

import torch
from torch import Tensor

from grace_exp.config.reward import TruncationConfig


def apply_truncation(totals: Tensor, truncated: Tensor, config: TruncationConfig) -> Tensor:
    """Replace the totals of truncated rationales as configured.

    `absolute` is the paper's rule. Where totals lie below `value` it rewards running out of tokens.

    Args:
        totals: `[groups, K]`.
        truncated: `[groups, K]` bool.
        config: Chooses the rule.

    Returns:
        `[groups, K]`.
    """
    if config.mode == "none":
        return totals
    return torch.where(truncated, config.value, totals)
