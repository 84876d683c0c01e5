"""How much the rationales of different texts overlap in the embedding space, measured without labels."""

import math

import torch
from torch import Tensor


def augmentation_overlap(unit_rollouts_GKH: Tensor) -> float:
    """Return the share of rationales whose nearest neighbour among all others belongs to another text.

    This is the average confusion ratio of Wang et al. (arXiv 2203.13457), with a text's rationales as its augmented
    views: 0 if texts are told apart; (groups - 1) K / (groups K - 1) is expected if rationales carry no information.
        Their ARC is
    (1 - this) / (1 - this at the start of training), so within one run the lowest overlap is the highest ARC. Compare
    it only between steps with the same number of groups and K: with more texts there is more to confuse.

    Args:
        unit_rollouts_GKH: `[groups, K, hidden]`, each of length 1, K at least 2.

    Returns:
        A number in [0, 1]; a tie counts as another text's, so that a collapsed space overlaps completely.
    """
    groups, samples, hidden = unit_rollouts_GKH.shape
    rollouts_NH = unit_rollouts_GKH.reshape(groups * samples, hidden)
    similarity_NN = rollouts_NH @ rollouts_NH.T
    group_N = torch.arange(groups, device=rollouts_NH.device).repeat_interleave(samples)
    same_NN = group_N[:, None] == group_N
    similarity_NN.fill_diagonal_(-math.inf)
    own_N = similarity_NN.masked_fill(~same_NN, -math.inf).amax(dim=1)
    other_N = similarity_NN.masked_fill(same_NN, -math.inf).amax(dim=1)
    return (other_N >= own_N).double().mean().item()
