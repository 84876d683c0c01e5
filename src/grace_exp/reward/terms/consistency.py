"""Rewards rationales of one text that are near each other."""

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def consistency_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """Mean cosine of each rollout with the others of its group (GRACE, arXiv 2510.04506).

    consistency_i^k = mean over l != k of sim(h_i^k, h_i^l). With K = 2 both have the same value, and no advantage
    changes.

    Args:
        inputs: Embeddings.
        config: Not read.

    Returns:
        `[groups, K]` in [-1, 1]; zero where K is 1.
    """
    samples = inputs.truncated_GK.shape[1]
    if samples == 1:
        return torch.zeros_like(inputs.unit_rollouts_GKH[..., 0])
    cosines_GKK = inputs.unit_rollouts_GKH @ inputs.unit_rollouts_GKH.transpose(1, 2)
    itself_KK = torch.eye(samples, dtype=torch.bool, device=cosines_GKK.device)
    return cosines_GKK.masked_fill(itself_KK, 0.0).sum(-1) / (samples - 1)
