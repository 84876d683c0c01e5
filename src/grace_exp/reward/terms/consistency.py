"""The rationales of one text near one another."""

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def consistency_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """Mean cosine of each rollout with the others of its group (GRACE, arXiv 2510.04506).

    consistency_i^k = mean over l != k of sim(h_i^k, h_i^l). With K = 2 it is the same for both, and moves no advantage.

    Args:
        inputs: Embeddings.
        config: Nothing of it is read.

    Returns:
        `[groups, K]` in [-1, 1]; zero where K is 1.
    """
    samples = inputs.truncated.shape[1]
    if samples == 1:
        return torch.zeros_like(inputs.unit_rollouts[..., 0])
    within = inputs.unit_rollouts @ inputs.unit_rollouts.transpose(1, 2)
    itself = torch.eye(samples, dtype=torch.bool, device=within.device)
    return within.masked_fill(itself, 0.0).sum(-1) / (samples - 1)
