"""Rewards a distance from the instance's own negatives."""

import torch
from torch import Tensor

from grace_exp.config.reward import NegativeConfig
from grace_exp.reward.inputs import RewardInputs


def negative_term(inputs: RewardInputs, config: NegativeConfig) -> Tensor:
    """Minus the cosines with the instance's own negatives d-_im, m = 1..M.

    - `anchor: query` (GRACE, arXiv 2510.04506): -sum over m of sim(q_i, d-_im). If positives are trained, it is the
      same for every rollout of a group: it changes rewards but, without truncation, no advantage. If queries are
      trained, q_i is the rollout, and it changes advantages.
    - `anchor: rollout`: -mean over m of sim(h_i^k, d-_im), which changes advantages. It is a mean, so that instances
      with many negatives do not weigh more than others.

    Args:
        inputs: Embeddings.
        config: The anchor.

    Returns:
        `[groups, K]` in [-M, M] or [-1, 1]; 0 for instances without negatives.
    """
    if config.anchor == "rollout":
        return -inputs.rollouts_to_negatives_GKM.sum(dim=-1) / inputs.has_negative_GM.sum(
            dim=-1, keepdim=True
        ).clamp_min(1)
    if inputs.trained == "query":
        return -inputs.rollouts_to_negatives_GKM.sum(dim=-1)
    similarity_G = torch.einsum("gmh,gah->ga", inputs.unit_negatives_GMH, inputs.unit_anchors_GAH).mean(dim=-1)
    return -similarity_G[:, None].expand(inputs.truncated_GK.shape)
