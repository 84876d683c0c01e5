"""Rewards a high rank of the positive among the candidates, on a logarithmic scale."""

import torch
from torch import Tensor

from grace_exp.config.reward import LogRankConfig
from grace_exp.reward.candidates import rollout_candidates
from grace_exp.reward.inputs import RewardInputs


def log_rank_term(inputs: RewardInputs, config: LogRankConfig) -> Tensor:
    """1 minus log rank / log N, the mean over anchor samples (ours).

    With the rank of rollout (i, k) = 1 + the number of candidates c with sim(h_i^k, c) >= sim(h_i^k, q_i), and N = 1 +
    the number of candidates (`candidates.rollout_candidates`):

        1 - log rank / log N

    The first ranks count most, as in retrieval measures: from 2 to 1 is worth as much as from 4 to 2. A tie counts
    against the rationale. A rank is a step function of the embeddings: it gives advantages, but no pathwise gradient.

    Args:
        inputs: Embeddings.
        config: Which hard negatives are candidates.

    Returns:
        `[groups, K]` in [0, 1]; 0 if there is no candidate.
    """
    cosines_GKAC, there_G11C = rollout_candidates(inputs, config.negatives)
    own_GKA1 = inputs.rollouts_to_own_anchors_GKA[..., None]
    rank_GKA = 1 + ((cosines_GKAC >= own_GKA1) & there_G11C).sum(dim=-1).double()
    count_G11 = 1 + there_G11C.sum(dim=-1).double()
    share_GKA = rank_GKA.log() / count_G11.log().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(count_G11 > 1, 1 - share_GKA, 0.0).mean(dim=-1)
