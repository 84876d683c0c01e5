"""Rewards a distance from the other instances of the batch."""

import torch
from torch import Tensor

from grace_exp.config.reward import HardNegativeConfig
from grace_exp.reward.inputs import RewardInputs


def hard_negative_term(inputs: RewardInputs, config: HardNegativeConfig) -> Tensor:
    """Minus the mean similarity to the other groups (GRACE, arXiv 2510.04506, and its released code).

    - `anchor: query` (paper; released code, supervised): -mean over j != i of max over l of sim(q_i, h_j^l). If
      positives are trained, it is the same for every rollout of a group: it changes rewards but, without truncation, no
      advantage. If queries are trained, q_i is the rollout and h_j^l the anchors, and it changes advantages.
    - `anchor: rollout` (released code, unsupervised): -mean over j != i of sim(h_i^k, q_j), which changes advantages.
    - `anchor: auto`: `query` for instances with a negative, `rollout` for those without. The released code does this to
      supervised and to unsupervised data; here both can be in one batch.

    The mean is taken over anchor samples, except for the paper's max over the samples of a document.

    In the paper, groups j that share a text with the instance's pair count as other instances; with
    `equal_texts: mask` they are left out.

    Args:
        inputs: Embeddings.
        config: Chooses the anchor.

    Returns:
        `[groups, K]` in [-1, 1]; zero with one group.
    """
    own_GG = inputs.same_text_GG if config.equal_texts == "mask" else inputs.same_group_GG
    match config.anchor:
        case "query":
            return _from_query(inputs, own_GG)
        case "rollout":
            return _from_rollout(inputs, own_GG)
        case "auto":
            return torch.where(
                inputs.has_negative_GM.any(-1, keepdim=True), _from_query(inputs, own_GG), _from_rollout(inputs, own_GG)
            )


def _from_query(inputs: RewardInputs, own_GG: Tensor) -> Tensor:
    if inputs.trained == "query":
        return -_mean_over_others(inputs.rollouts_to_anchors_GKGA.amax(dim=-1), own_GG)
    nearest_GG = inputs.rollouts_to_anchors_GKGA.amax(dim=1).mean(dim=-1)  # [rollouts' group, query's group]
    return -_mean_over_others(nearest_GG.T[:, None], own_GG).expand(inputs.truncated_GK.shape)


def _from_rollout(inputs: RewardInputs, own_GG: Tensor) -> Tensor:
    return -_mean_over_others(inputs.rollouts_to_anchors_GKGA.mean(dim=-1), own_GG)


def _mean_over_others(similarity_GxG: Tensor, own_GG: Tensor) -> Tensor:
    """Return the means of `[groups, any, groups]` over the groups that are not `own`, `[groups, any]`; 0 if none."""
    others_GxG = similarity_GxG.masked_fill(own_GG[:, None], 0.0)
    return others_GxG.sum(dim=-1) / (~own_GG).sum(dim=-1).clamp(min=1)[:, None]
