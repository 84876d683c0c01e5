"""How much the rationales of different texts overlap: a measure of embeddings that needs no label."""

import math

import torch
from torch import Tensor


def augmentation_overlap(unit_rollouts: Tensor) -> float:
    """Share of rationales whose nearest neighbour among all others belongs to another text.

    The average confusion ratio of Wang et al. (arXiv 2203.13457), with a text's rationales as its augmented views:
    0 when texts are told apart, (groups - 1) K / (groups K - 1) expected when rationales tell nothing. Their ARC is
    (1 - this) / (1 - this at the start of training), so that within one run the lowest overlap is the highest ARC.
    Compare it between steps with the same number of groups and K: more texts leave more to be confused with.

    Args:
        unit_rollouts: `[groups, K, hidden]`, each of length 1, K at least 2.

    Returns:
        In [0, 1]; a tie counts as another text's, so that a collapsed space overlaps wholly.
    """
    groups, samples, hidden = unit_rollouts.shape
    rollouts = unit_rollouts.reshape(groups * samples, hidden)
    similarity = rollouts @ rollouts.T
    group = torch.arange(groups, device=rollouts.device).repeat_interleave(samples)
    same = group[:, None] == group
    similarity.fill_diagonal_(-math.inf)
    own = similarity.masked_fill(~same, -math.inf).amax(dim=1)
    other = similarity.masked_fill(same, -math.inf).amax(dim=1)
    return (other >= own).double().mean().item()
