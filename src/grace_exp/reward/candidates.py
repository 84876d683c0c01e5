"""The candidates that a rationale must be told apart from."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.reward.inputs import RewardInputs


def rollout_candidates(inputs: RewardInputs, negatives: Literal["own", "all"]) -> tuple[Tensor, Tensor]:
    """Return the cosines of every rollout with other groups' anchors and with hard negatives, without its own anchor.

    Groups and negatives that share a text with the instance's pair are not candidates, as in `infonce`.

    Args:
        inputs: Embeddings.
        negatives: own: the instance's hard negatives; all: those of the whole batch.

    Returns:
        Cosines `[groups, K, A, candidates]`, and which candidates exist, `[groups, 1, 1, candidates]` bool.
    """
    anchors_GKAG = inputs.rollouts_to_anchors_GKGA.transpose(2, 3)
    if negatives == "own":
        negatives_GKX = inputs.rollouts_to_negatives_GKM
        rival_GX = inputs.rival_negatives_GGM.diagonal().T  # diagonal() puts the groups last
    else:
        negatives_GKX = inputs.unit_rollouts_GKH @ inputs.unit_negatives_GMH.flatten(0, 1).T
        rival_GX = inputs.rival_negatives_GGM.flatten(1)
    negatives_GKAX = negatives_GKX[:, :, None].expand(*anchors_GKAG.shape[:3], -1)
    cosines_GKAC = torch.cat([anchors_GKAG, negatives_GKAX], dim=-1)
    return cosines_GKAC, torch.cat([~inputs.same_text_GG, rival_GX], dim=-1)[:, None, None]
