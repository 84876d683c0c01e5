"""Rewards a positive that outranks the candidates by a margin."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import MarginRankConfig
from grace_exp.reward.inputs import RewardInputs


def margin_rank_term(inputs: RewardInputs, config: MarginRankConfig) -> Tensor:
    """Share of the candidates that a rollout's own anchor outranks, times the margin (ours).

    Candidates c of rollout (i, k) are the other groups' anchors and the instance's own negatives. With

        share  = share of candidates with sim(h_i^k, q_i) > sim(h_i^k, c)
        margin = sim(h_i^k, q_i) - max (`hardest`) or mean (`mean`) over c of sim(h_i^k, c)

    The value is share x margin if the margin is positive, and (1 - share) x margin if it is negative; a plain product
    would prefer outranking nothing to outranking much with a negative margin. The value never falls when sim(h_i^k,
    q_i) rises, and never rises when a candidate comes nearer. The mean is taken over anchor samples.

    Args:
        inputs: Embeddings.
        config: The margin.

    Returns:
        `[groups, K]` in [-2, 2]; 0 if there is no candidate.
    """
    anchors_GKAG = inputs.rollouts_to_anchors_GKGA.transpose(2, 3)
    negatives_GKAM = inputs.rollouts_to_negatives_GKM[:, :, None].expand(*anchors_GKAG.shape[:3], -1)
    candidates_GKAC = torch.cat([anchors_GKAG, negatives_GKAM], dim=-1)
    there_G11C = torch.cat([~inputs.same_group_GG, inputs.has_negative_GM], dim=-1)[:, None, None]
    count_G11 = there_G11C.double().sum(dim=-1)
    own_GKA = inputs.rollouts_to_own_anchors_GKA
    share_GKA = ((own_GKA[..., None] > candidates_GKAC) & there_G11C).sum(dim=-1) / count_G11.clamp_min(1)
    if config.margin == "hardest":
        rival_GKA = candidates_GKAC.masked_fill(~there_G11C, -math.inf).amax(dim=-1)
    else:
        rival_GKA = candidates_GKAC.masked_fill(~there_G11C, 0.0).sum(dim=-1) / count_G11.clamp_min(1)
    margin_GKA = (own_GKA - rival_GKA).masked_fill(count_G11 == 0, 0.0)
    return torch.where(margin_GKA > 0, share_GKA * margin_GKA, (1 - share_GKA) * margin_GKA).mean(dim=-1)
