"""Measures of the embedding space that do not depend on the reward."""

import math

import torch
from torch import Tensor

from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.overlap import augmentation_overlap

UNIFORMITY_T = 2.0
"""The constant t of Wang & Isola's uniformity."""


def embedding_metrics(inputs: RewardInputs) -> dict[str, float]:
    """Return metrics of the rollouts' embeddings.

    - `embed/cos_pos`: mean cosine of a rollout with its own anchors.
    - `embed/cos_neg`: mean cosine with its group's own negatives; missing if no group has one.
    - `embed/effective_rank`: exp of the entropy of the rollouts' normalised singular values (Roy & Vetterli, EUSIPCO
      2007), rows of length 1, not centred: 1 if all point in one direction, at most min(groups x K, hidden).

    With more than one group also:

    - `embed/cos_random`: mean cosine of a rollout with the other groups' anchors.
    - `embed/margin`: cos_pos - cos_random.
    - `embed/in_batch_accuracy`: share of rollouts (mean over anchor samples) whose own anchor is nearer than every
      other group's; a tie counts as a miss, so that a collapsed space scores 0.
    - `embed/augmentation_overlap`: see `overlap.augmentation_overlap`; missing if K is 1.
    - `embed/uniformity`: log of the mean of exp(-2 |x - y|^2) (Wang & Isola, arXiv 2005.10242) over all pairs of
      rollouts of different groups (those of one group should coincide): 0 if collapsed; lower is more uniform.

    Args:
        inputs: Embeddings of all groups of the step.

    Returns:
        Metrics by name.
    """
    groups, samples, hidden = inputs.unit_rollouts_GKH.shape
    own_GKA = inputs.rollouts_to_own_anchors_GKA
    rollouts_NH = inputs.unit_rollouts_GKH.reshape(groups * samples, hidden)
    similarity_NN = rollouts_NH @ rollouts_NH.T
    figures = {"cos_pos": own_GKA.mean(), "effective_rank": _effective_rank(similarity_NN)}
    there_GKM = inputs.has_negative_GM[:, None].expand(groups, samples, -1)
    if there_GKM.any():
        figures["cos_neg"] = inputs.rollouts_to_negatives_GKM[there_GKM].mean()
    if groups > 1:
        others_GKGA = inputs.rollouts_to_anchors_GKGA.masked_fill(inputs.same_group_GG[:, None, :, None], -math.inf)
        figures["cos_random"] = others_GKGA[torch.isfinite(others_GKGA)].mean()
        figures["margin"] = figures["cos_pos"] - figures["cos_random"]
        figures["in_batch_accuracy"] = (own_GKA > others_GKGA.amax(dim=2)).double().mean()
        group_N = torch.arange(groups, device=rollouts_NH.device).repeat_interleave(samples)
        squared_distance = 2.0 - 2.0 * similarity_NN[group_N[:, None] != group_N]
        figures["uniformity"] = torch.exp(-UNIFORMITY_T * squared_distance).mean().log()
    values = torch.stack(list(figures.values())).tolist()
    metrics = {f"embed/{name}": value for name, value in zip(figures, values, strict=True)}
    if groups > 1 and samples > 1:
        metrics["embed/augmentation_overlap"] = augmentation_overlap(inputs.unit_rollouts_GKH)
    return metrics


def in_batch_misses(inputs: RewardInputs) -> Tensor:
    """Return the share of each group's rollouts that do not find their own anchor, `[groups]` float64.

    A rollout finds its anchor (mean over anchor samples) if the anchor is nearer than every anchor of the groups
    without a text of this group's pair. Without shared texts this is 1 minus `embed/in_batch_accuracy`, by group.

    Args:
        inputs: Embeddings of all groups of the step.
    """
    same_text = inputs.same_text_GG[:, None, :, None]
    rivals_GKA = inputs.rollouts_to_anchors_GKGA.masked_fill(same_text, -math.inf).amax(dim=2)
    found_GKA = (inputs.rollouts_to_own_anchors_GKA > rivals_GKA).double()
    return 1 - found_GKA.mean(dim=(1, 2))


def _effective_rank(gram_NN: Tensor) -> Tensor:
    """Return the effective rank of A from A A^T `[n, n]`, whose eigenvalues are the squared singular values of A."""
    singular = torch.linalg.eigvalsh(gram_NN).clamp_min(0).sqrt()
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank
