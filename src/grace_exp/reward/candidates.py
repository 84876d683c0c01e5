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
    anchors = inputs.rollouts_to_anchors.transpose(2, 3)  # [groups, K, A, groups]
    if negatives == "own":
        to_negatives = inputs.rollouts_to_negatives
        is_rival = inputs.rival_negatives.diagonal().T  # diagonal() puts the groups last
    else:
        to_negatives = inputs.unit_rollouts @ inputs.unit_negatives.flatten(0, 1).T
        is_rival = inputs.rival_negatives.flatten(1)
    cosines = torch.cat([anchors, to_negatives[:, :, None].expand(*anchors.shape[:3], -1)], dim=-1)
    return cosines, torch.cat([~inputs.same_text, is_rival], dim=-1)[:, None, None]
