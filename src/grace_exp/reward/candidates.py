"""What a rationale could be mistaken for."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.reward.inputs import RewardInputs


def rollout_candidates(inputs: RewardInputs, negatives: Literal["own", "all"]) -> tuple[Tensor, Tensor]:
    """Cosines of every rollout with the other groups' anchors and with hard negatives, the own anchor left out.

    Groups and negatives that hold a text of the instance's own pair are no candidates, as in `infonce`.

    Args:
        inputs: Embeddings.
        negatives: Those of the instance, or of the whole batch.

    Returns:
        Cosines `[groups, K, A, candidates]`, and which candidates there are, `[groups, 1, 1, candidates]` bool.
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
