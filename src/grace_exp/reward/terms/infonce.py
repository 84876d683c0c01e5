"""Rewards a rationale that is nearer to its anchor than to anything else."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import InfoNceConfig
from grace_exp.reward.inputs import RewardInputs


def infonce_term(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Log-probability of picking the right partner among the batch: InfoNCE (arXiv 1807.03748) as a reward.

    With s = sim / temperature, N_i the hard negatives (the instance's own, or all of the batch), and the mean over
    anchor samples:

    - `rollout_to_anchors`: s(h_i^k, q_i) - log [ sum over all j of exp s(h_i^k, q_j)
      + sum over N_i of exp s(h_i^k, d) ]. Candidates are compared with the rollout, so negatives differ between the
      rollouts of a group and change advantages.
    - `anchor_to_rollouts`: s(q_i, h_i^k) - log [ exp s(q_i, h_i^k) + sum over j != i of mean over l of
      exp s(q_i, h_j^l) + sum over N_i of exp s(q_i, d) ]. Each other text counts once, for any K; the rollout's
      siblings are not rivals. The rivals are the same for a whole group: they set how much a difference in `positive`
      is worth, which is little if the anchor already finds its text.
    - `both`: the mean of the two, as in CLIP (arXiv 2103.00020).

    Groups and negatives that share a text with the instance's pair are left out, as in the contrastive baseline.

    Args:
        inputs: Embeddings.
        config: Temperature of the softmax over cosines, direction, hard negatives.

    Returns:
        `[groups, K]` in nats, at most 0; 0 with one group and no negatives, because nothing can be confused.
    """
    match config.direction:
        case "rollout_to_anchors":
            return _rollout_to_anchors(inputs, config)
        case "anchor_to_rollouts":
            return _anchor_to_rollouts(inputs, config)
        case "both":
            return (_rollout_to_anchors(inputs, config) + _anchor_to_rollouts(inputs, config)) / 2


def _rollout_to_anchors(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    anchors_GKAG = (inputs.rollouts_to_anchors_GKGA / config.temperature).transpose(2, 3)
    negatives_GK1M = _negatives(inputs.unit_rollouts_GKH, inputs, config)[:, :, None]
    anchors_GKAG = anchors_GKAG.masked_fill((inputs.same_text_GG & ~inputs.same_group_GG)[:, None, None], -math.inf)
    rivals_GKAC = torch.cat([anchors_GKAG, negatives_GK1M.expand(*anchors_GKAG.shape[:3], -1)], dim=-1)
    return (_own(inputs, config) - rivals_GKAC.logsumexp(dim=-1)).mean(dim=-1)


def _anchor_to_rollouts(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    samples = inputs.truncated_GK.shape[1]
    texts_GGA = (inputs.rollouts_to_anchors_GKGA / config.temperature).logsumexp(dim=1) - math.log(samples)
    texts_GAG = texts_GGA.permute(1, 2, 0).masked_fill(inputs.same_text_GG[:, None], -math.inf)
    rivals_GA = torch.cat([texts_GAG, _negatives(inputs.unit_anchors_GAH, inputs, config)], dim=-1).logsumexp(dim=-1)
    own_GKA = _own(inputs, config)
    return (own_GKA - torch.logaddexp(own_GKA, rivals_GA[:, None])).mean(dim=-1)


def _own(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Return the logits of the rollouts with their own anchors, `[groups, K, A]`."""
    return inputs.rollouts_to_own_anchors_GKA / config.temperature


def _negatives(unit_GxH: Tensor, inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Return logits `[groups, any, M or groups x M]` of vectors `[groups, any, hidden]` with hard negatives."""
    if config.negatives == "own":
        logits_GxC = unit_GxH @ inputs.unit_negatives_GMH.transpose(1, 2)
        there_G1C = inputs.rival_negatives_GGM.diagonal().T[:, None]  # diagonal() puts the groups last
    else:
        logits_GxC = unit_GxH @ inputs.unit_negatives_GMH.flatten(0, 1).T
        there_G1C = inputs.rival_negatives_GGM.flatten(1)[:, None]
    return (logits_GxC / config.temperature).masked_fill(~there_G1C, -math.inf)
