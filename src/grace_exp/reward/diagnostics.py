"""The state of the embedding space, apart from any reward."""

import math

import torch
from torch import Tensor

from grace_exp.reward.inputs import RewardInputs

UNIFORMITY_T = 2.0
"""Wang & Isola's t."""


def embedding_metrics(inputs: RewardInputs) -> dict[str, float]:
    """Figures to log about the rollouts' embeddings.

    - `embed/cos_pos`: mean cosine of a rollout with its own query.
    - `embed/cos_neg`: with its group's own negatives; left out without negatives.
    - `embed/effective_rank`: exp of the entropy of the rollouts' normalised singular values (Roy & Vetterli, EUSIPCO
      2007), rows of length 1, not centred: 1 when all point one way, at most min(groups x K, hidden).

    With more than one group also:

    - `embed/cos_random`: mean cosine of a rollout with the other groups' queries.
    - `embed/margin`: cos_pos - cos_random.
    - `embed/in_batch_accuracy`: share of rollouts whose own query is nearer than every other; a tie is a miss, so that
      a collapsed space does not score.
    - `embed/uniformity`: log of the mean of exp(-2 |x - y|^2) (Wang & Isola, arXiv 2005.10242) over all pairs of
      rollouts of different groups (those of one group are meant to coincide): 0 when collapsed, lower is more even.

    Args:
        inputs: Embeddings of all groups of the step.

    Returns:
        Figures by name.
    """
    groups, samples, hidden = inputs.unit_rollouts.shape
    to_queries = inputs.rollouts_to_queries
    own = torch.diagonal(to_queries, dim1=0, dim2=2).T
    rollouts = inputs.unit_rollouts.reshape(groups * samples, hidden)
    similarity = rollouts @ rollouts.T
    figures = {"cos_pos": own.mean(), "effective_rank": _effective_rank(similarity)}
    if inputs.rollouts_to_negatives.numel():
        figures["cos_neg"] = inputs.rollouts_to_negatives.mean()
    if groups > 1:
        itself = inputs.same_group[:, None].expand(to_queries.shape)
        figures["cos_random"] = to_queries[~itself].mean()
        figures["margin"] = figures["cos_pos"] - figures["cos_random"]
        nearest_other = to_queries.masked_fill(itself, -math.inf).amax(dim=-1)
        figures["in_batch_accuracy"] = (own > nearest_other).double().mean()
        group = torch.arange(groups, device=rollouts.device).repeat_interleave(samples)
        squared_distance = 2.0 - 2.0 * similarity[group[:, None] != group]
        figures["uniformity"] = torch.exp(-UNIFORMITY_T * squared_distance).mean().log()
    values = torch.stack(list(figures.values())).tolist()
    return {f"embed/{name}": value for name, value in zip(figures, values, strict=True)}


def _effective_rank(gram: Tensor) -> Tensor:
    """Effective rank of the matrix A from A A^T `[n, n]`, whose eigenvalues are A's squared singular values."""
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank
