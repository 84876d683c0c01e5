"""The state of the embedding space, apart from any reward."""

import math

import torch
from torch import Tensor

from grace_exp.reward.inputs import RewardInputs
from grace_exp.reward.overlap import augmentation_overlap

UNIFORMITY_T = 2.0
"""Wang & Isola's t."""


def embedding_metrics(inputs: RewardInputs) -> dict[str, float]:
    """Figures to log about the rollouts' embeddings.

    - `embed/cos_pos`: mean cosine of a rollout with its own anchors.
    - `embed/cos_neg`: with its group's own negatives; left out where no group has one.
    - `embed/effective_rank`: exp of the entropy of the rollouts' normalised singular values (Roy & Vetterli, EUSIPCO
      2007), rows of length 1, not centred: 1 when all point one way, at most min(groups x K, hidden).

    With more than one group also:

    - `embed/cos_random`: mean cosine of a rollout with the other groups' anchors.
    - `embed/margin`: cos_pos - cos_random.
    - `embed/in_batch_accuracy`: share of rollouts (mean over anchor samples) whose own anchor is nearer than every
      other group's; a tie is a miss, so that a collapsed space does not score.
    - `embed/augmentation_overlap`: see `overlap.augmentation_overlap`; left out where K is 1.
    - `embed/uniformity`: log of the mean of exp(-2 |x - y|^2) (Wang & Isola, arXiv 2005.10242) over all pairs of
      rollouts of different groups (those of one group are meant to coincide): 0 when collapsed, lower is more even.

    Args:
        inputs: Embeddings of all groups of the step.

    Returns:
        Figures by name.
    """
    groups, samples, hidden = inputs.unit_rollouts.shape
    own = inputs.rollouts_to_own_anchors
    rollouts = inputs.unit_rollouts.reshape(groups * samples, hidden)
    similarity = rollouts @ rollouts.T
    figures = {"cos_pos": own.mean(), "effective_rank": _effective_rank(similarity)}
    there = inputs.has_negative[:, None].expand(groups, samples, -1)
    if there.any():
        figures["cos_neg"] = inputs.rollouts_to_negatives[there].mean()
    if groups > 1:
        others = inputs.rollouts_to_anchors.masked_fill(inputs.same_group[:, None, :, None], -math.inf)
        figures["cos_random"] = others[torch.isfinite(others)].mean()
        figures["margin"] = figures["cos_pos"] - figures["cos_random"]
        figures["in_batch_accuracy"] = (own > others.amax(dim=2)).double().mean()
        group = torch.arange(groups, device=rollouts.device).repeat_interleave(samples)
        squared_distance = 2.0 - 2.0 * similarity[group[:, None] != group]
        figures["uniformity"] = torch.exp(-UNIFORMITY_T * squared_distance).mean().log()
    values = torch.stack(list(figures.values())).tolist()
    metrics = {f"embed/{name}": value for name, value in zip(figures, values, strict=True)}
    if groups > 1 and samples > 1:
        metrics["embed/augmentation_overlap"] = augmentation_overlap(inputs.unit_rollouts)
    return metrics


def _effective_rank(gram: Tensor) -> Tensor:
    """Effective rank of the matrix A from A A^T `[n, n]`, whose eigenvalues are A's squared singular values."""
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank
