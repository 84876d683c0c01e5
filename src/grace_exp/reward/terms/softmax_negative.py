"""Rewards a distance from the candidates, most of all from the nearest."""

import torch
from torch import Tensor

from grace_exp.config.reward import SoftmaxNegativeConfig
from grace_exp.reward.candidates import rollout_candidates
from grace_exp.reward.inputs import RewardInputs


def softmax_negative_term(inputs: RewardInputs, config: SoftmaxNegativeConfig) -> Tensor:
    """Minus the mean cosine with the candidates, weighted by their nearness; the mean over anchor samples.

    With w_c = softmax over candidates c of sim(h_i^k, c) / temperature (`candidates.rollout_candidates`):

        -sum over c of w_c x sim(h_i^k, c)

    A high temperature gives the plain mean, a low one only the nearest candidate. The weights are those of hard
    negatives in arXiv 2010.04592 (with beta = 1 / temperature). The pathwise gradient flows through them too.

    Args:
        inputs: Embeddings.
        config: Temperature, and which hard negatives are candidates.

    Returns:
        `[groups, K]` in [-1, 1]; 0 if there is no candidate.
    """
    cosines_GKAC, there_G11C = rollout_candidates(inputs, config.negatives)
    logits_GKAC = (cosines_GKAC / config.temperature).masked_fill(~there_G11C, torch.finfo(torch.float64).min)
    weighted_GKAC = logits_GKAC.softmax(dim=-1) * cosines_GKAC.masked_fill(~there_G11C, 0.0)
    return -weighted_GKAC.sum(dim=-1).mean(dim=-1)
