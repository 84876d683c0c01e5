"""The rationale's embedding nearer to its anchor than to anything else."""

import math

import torch
from torch import Tensor

from grace_exp.config.reward import InfoNceConfig
from grace_exp.reward.inputs import RewardInputs


def infonce_term(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Log-probability of picking the right partner among the batch: InfoNCE (arXiv 1807.03748) as a reward.

    With s = sim / temperature, N_i the hard negatives (the instance's own, or all of the batch), and the mean taken
    over anchor samples:

    - `rollout_to_anchors`: s(h_i^k, q_i) - log [ sum over all j of exp s(h_i^k, q_j)
      + sum over N_i of exp s(h_i^k, d) ]. Candidates are compared with the rollout, so that negatives differ between
      the rollouts of a group and act.
    - `anchor_to_rollouts`: s(q_i, h_i^k) - log [ exp s(q_i, h_i^k) + sum over j != i of mean over l of
      exp s(q_i, h_j^l) + sum over N_i of exp s(q_i, d) ]. Each other text counts once, whatever K; the rollout's
      siblings are no rivals. Its rivals are the same for a whole group: they set how much a difference in `positive`
      is worth, which is little where the anchor already finds its text.
    - `both`: the mean of the two, as in CLIP (arXiv 2103.00020).

    Groups and negatives that hold a text of the instance's own pair are no rivals and are left out, as in the
    contrastive baseline.

    Args:
        inputs: Embeddings.
        config: Temperature of the softmax over cosines, direction, hard negatives.

    Returns:
        `[groups, K]` in nats, at most zero; zero with one group and no negatives, where nothing can be confused.
    """
    match config.direction:
        case "rollout_to_anchors":
            return _rollout_to_anchors(inputs, config)
        case "anchor_to_rollouts":
            return _anchor_to_rollouts(inputs, config)
        case "both":
            return (_rollout_to_anchors(inputs, config) + _anchor_to_rollouts(inputs, config)) / 2


def _rollout_to_anchors(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    anchors = (inputs.rollouts_to_anchors / config.temperature).transpose(2, 3)  # [groups, K, A, groups]
    negatives = _negatives(inputs.unit_rollouts, inputs, config)[:, :, None]
    anchors = anchors.masked_fill((inputs.same_text & ~inputs.same_group)[:, None, None], -math.inf)
    rivals = torch.cat([anchors, negatives.expand(*anchors.shape[:3], -1)], dim=-1)
    return (_own(inputs, config) - rivals.logsumexp(dim=-1)).mean(dim=-1)


def _anchor_to_rollouts(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    samples = inputs.truncated.shape[1]
    texts = (inputs.rollouts_to_anchors / config.temperature).logsumexp(dim=1) - math.log(samples)
    texts = texts.permute(1, 2, 0).masked_fill(inputs.same_text[:, None], -math.inf)  # [groups, A, groups]
    rivals = torch.cat([texts, _negatives(inputs.unit_anchors, inputs, config)], dim=-1).logsumexp(dim=-1)
    own = _own(inputs, config)
    return (own - torch.logaddexp(own, rivals[:, None])).mean(dim=-1)


def _own(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """`[groups, K, A]`."""
    return inputs.rollouts_to_own_anchors / config.temperature


def _negatives(unit: Tensor, inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Logits `[groups, any, M or groups x M]` of vectors `[groups, any, hidden]` with hard negatives."""
    if config.negatives == "own":
        logits = unit @ inputs.unit_negatives.transpose(1, 2)
        there = inputs.rival_negatives.diagonal().T[:, None]  # diagonal() puts the groups last
    else:
        logits, there = unit @ inputs.unit_negatives.flatten(0, 1).T, inputs.rival_negatives.flatten(1)[:, None]
    return (logits / config.temperature).masked_fill(~there, -math.inf)
