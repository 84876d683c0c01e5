"""The positive outranks the candidates, by a margin."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import MarginRankConfig
from grace_exp.reward.inputs import RewardInputs


def margin_rank_term(inputs: RewardInputs, config: MarginRankConfig) -> Tensor:
    """Share of candidates that a rollout's own anchor outranks, times the margin (this project's).

    Candidates c of rollout (i, k) are the other groups' anchors and the instance's own negatives. With

        share  = share of candidates with sim(h_i^k, q_i) > sim(h_i^k, c)
        margin = sim(h_i^k, q_i) - max (`hardest`) or mean (`mean`) over c of sim(h_i^k, c)

    the value is share x margin where the margin is positive, and (1 - share) x margin where it is negative, since a
    plain product would prefer outranking nothing to outranking much by a negative margin. It never falls when
    sim(h_i^k, q_i) rises, and never rises when a candidate comes nearer. The mean is taken over anchor samples.

    Args:
        inputs: Embeddings.
        config: Chooses the margin.

    Returns:
        `[groups, K]` in [-2, 2]; zero where there is no candidate.
    """
    anchors = inputs.rollouts_to_anchors.transpose(2, 3)  # [groups, K, A, groups]
    negatives = inputs.rollouts_to_negatives[:, :, None].expand(*anchors.shape[:3], -1)
    candidates = torch.cat([anchors, negatives], dim=-1)
    there = torch.cat([~inputs.same_group, inputs.has_negative], dim=-1)[:, None, None]
    count = there.double().sum(dim=-1)
    own = inputs.rollouts_to_own_anchors
    share = ((own[..., None] > candidates) & there).sum(dim=-1) / count.clamp_min(1)
    if config.margin == "hardest":
        rival = candidates.masked_fill(~there, -math.inf).amax(dim=-1)
    else:
        rival = candidates.masked_fill(~there, 0.0).sum(dim=-1) / count.clamp_min(1)
    margin = (own - rival).masked_fill(count == 0, 0.0)
    return torch.where(margin > 0, share * margin, (1 - share) * margin).mean(dim=-1)
