"""What a reward is computed from: the embeddings of one step's rationales."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grace_exp.errors import GraceError


class EmbeddingError(GraceError):
    """An embedding has no direction, so no cosine with it exists."""


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """The embeddings of the groups of a step, over all processes.

    Rewards read directions only. Unit vectors are kept in float64: neither autocast nor TF32 touches float64 products,
    either of which would put errors of 1e-2 into totals divided by a temperature of 0.1. They carry no gradient.

    Attributes:
        rollouts: Embeddings of the trained texts' rationales, `[groups, K, hidden]` float32.
        queries: Anchor embeddings, `[groups, hidden]` float32.
        negatives: Embeddings of each group's own negatives, `[groups, M, hidden]` float32, or None.
        truncated: Rationales that reached the length limit without an end token, `[groups, K]` bool.
        lengths: Rationale lengths, `[groups, K]` tokens.

    Raises:
        EmbeddingError: An embedding is zero or holds nan or inf.
        ValueError: Shapes do not agree.
    """

    rollouts: Tensor
    queries: Tensor
    negatives: Tensor | None
    truncated: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        """Check shapes (broadcasting would hide a wrong one) and directions."""
        groups, samples, hidden = self.rollouts.shape
        expected: dict[str, tuple[int, ...]] = {
            "queries": (groups, hidden),
            "truncated": (groups, samples),
            "lengths": (groups, samples),
        }
        if self.negatives is not None:
            expected["negatives"] = (groups, self.negatives.shape[1], hidden)
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} has shape {found}; rollouts {tuple(self.rollouts.shape)} ask for {shape}")
        # Here rather than at first use, so that a bad embedding is reported whichever terms are set.
        _ = self.unit_rollouts, self.unit_queries, self.unit_negatives

    @cached_property
    def unit_rollouts(self) -> Tensor:
        """`[groups, K, hidden]` float64, each of length 1."""
        return _unit(self.rollouts, "rollout")

    @cached_property
    def unit_queries(self) -> Tensor:
        """`[groups, hidden]` float64, each of length 1."""
        return _unit(self.queries, "query")

    @cached_property
    def unit_negatives(self) -> Tensor:
        """`[groups, M, hidden]` float64, each of length 1; M is 0 where there are no negatives."""
        if self.negatives is None:
            return self.unit_queries.new_empty(self.queries.shape[0], 0, self.queries.shape[1])
        return _unit(self.negatives, "negative")

    @cached_property
    def rollouts_to_queries(self) -> Tensor:
        """Cosine of every rollout with every group's query, `[groups, K, groups]`."""
        return self.unit_rollouts @ self.unit_queries.T

    @cached_property
    def rollouts_to_negatives(self) -> Tensor:
        """Cosine of every rollout with its own group's negatives, `[groups, K, M]`."""
        return self.unit_rollouts @ self.unit_negatives.transpose(1, 2)

    @cached_property
    def same_group(self) -> Tensor:
        """Identity mask, `[groups, groups]` bool."""
        return torch.eye(self.rollouts.shape[0], dtype=torch.bool, device=self.rollouts.device)


def _unit(vectors: Tensor, what: str) -> Tensor:
    """Vectors `[groups, ..., hidden]` divided by their lengths, in float64."""
    vectors = vectors.detach().double()
    # Lengths cannot overflow or vanish: squares of float32 magnitudes fit float64.
    lengths = vectors.norm(dim=-1, keepdim=True)
    bad = ~torch.isfinite(lengths) | (lengths == 0)
    if bad.any():
        group, *rest, _ = bad.nonzero()[0].tolist()
        name = " ".join([what, *map(str, rest)])
        problem = "is zero" if lengths[group, *rest].item() == 0 else "holds nan or inf"
        raise EmbeddingError(
            f"group {group}: the embedding of {name} {problem} ({int(bad.sum())} of {bad.numel()} such vectors "
            "are bad), so it has no direction to reward. The model's activations have broken down: check its "
            "weights and hardware.precision, or lower optim.learning_rate."
        )
    unit: Tensor = vectors / lengths
    return unit
