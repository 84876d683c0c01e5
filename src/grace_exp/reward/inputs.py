"""What a reward is computed from: the embeddings of one step's rationales."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from grace_exp.errors import GraceError


class EmbeddingError(GraceError):
    """An embedding has no direction, so no cosine with it exists."""


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """The embeddings of the groups of a step, over all processes.

    Rewards read directions only. Unit vectors are kept in float64: neither autocast nor TF32 touches float64 products,
    either of which would put errors of 1e-2 into totals divided by a temperature of 0.1. They carry no gradient, unless
    `differentiable` asks for it.

    Attributes:
        rollouts: Embeddings of the trained texts' rationales, `[groups, K, hidden]` float32.
        anchors: Embeddings of the other side of each pair, `[groups, A, hidden]` float32. A is 1 in the paper.
        negatives: Embeddings of each group's own negatives, `[groups, M, hidden]` float32, or None.
        truncated: Rationales that reached the length limit without an end token, `[groups, K]` bool.
        lengths: Rationale lengths, `[groups, K]` tokens.
        negative_mask: True where `negatives` holds one, `[groups, M]` bool; None where all do. What it leaves out is
            padding and may hold anything.
        trained: Which side of the pair the rollouts are; the anchors are the other.
        max_tokens: Rationale budget, or None where no term reads it.
        well_formed: Share 0..1 from `terms.format.parse_rationale`, `[groups, K]`, or None.
        swapped: Embeddings of trained texts with another text's rationales, `[groups, K, hidden]`, or None. Entry
            (i, k) is the text of group i with rationale k of group `swapped_from[i]`.
        swapped_from: Whose rationales `swapped` holds, `[groups]` int64: a permutation of the groups that leaves none
            in its place. None where `swapped` is.
        bare: Embeddings of the trained texts without rationale, `[groups, hidden]`, or None.
        text_keys: The texts by a number each, equal texts by equal ones: query, positive, negatives,
            `[groups, 2 + M]` int64. None: all texts differ.
        differentiable: Whether unit vectors carry the gradient of the embeddings; see `gradient.reward_gradients`.

    Raises:
        EmbeddingError: An embedding is zero or holds nan or inf.
        ValueError: Shapes do not agree, or `swapped_from` is no such permutation.
    """

    rollouts: Tensor
    anchors: Tensor
    negatives: Tensor | None
    truncated: Tensor
    lengths: Tensor
    negative_mask: Tensor | None = None
    trained: Literal["positive", "query"] = "positive"
    max_tokens: int | None = None
    well_formed: Tensor | None = None
    swapped: Tensor | None = None
    swapped_from: Tensor | None = None
    bare: Tensor | None = None
    text_keys: Tensor | None = None
    differentiable: bool = False

    def __post_init__(self) -> None:
        """Check shapes (broadcasting would hide a wrong one) and directions."""
        groups, samples, hidden = self.rollouts.shape
        anchors = self.anchors.shape[1] if self.anchors.ndim == 3 else 1
        negatives = 0 if self.negatives is None else self.negatives.shape[1]
        expected: dict[str, tuple[int, ...]] = {
            "anchors": (groups, anchors, hidden),
            "negatives": (groups, negatives, hidden),
            "negative_mask": (groups, negatives),
            "truncated": (groups, samples),
            "lengths": (groups, samples),
            "well_formed": (groups, samples),
            "swapped": (groups, samples, hidden),
            "swapped_from": (groups,),
            "bare": (groups, hidden),
            "text_keys": (groups, 2 + negatives),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                found = tuple(tensor.shape)
                raise ValueError(f"{name} has shape {found}; rollouts {tuple(self.rollouts.shape)} ask for {shape}")
        if (self.swapped is None) != (self.swapped_from is None):
            raise ValueError("swapped and swapped_from go together")
        if self.swapped_from is not None:
            places = torch.arange(groups, device=self.swapped_from.device)
            if not torch.equal(self.swapped_from.sort().values, places) or (self.swapped_from == places).any():
                raise ValueError(
                    f"swapped_from {self.swapped_from.tolist()} is no permutation of {groups} groups that moves each"
                )
        # Here rather than at first use, so that a bad embedding is reported whichever terms are set.
        _ = self.unit_rollouts, self.unit_anchors, self.unit_negatives, self.unit_swapped, self.unit_bare

    @cached_property
    def unit_rollouts(self) -> Tensor:
        """`[groups, K, hidden]` float64, each of length 1."""
        return self._unit(self.rollouts, "rollout")

    @cached_property
    def unit_anchors(self) -> Tensor:
        """`[groups, A, hidden]` float64, each of length 1."""
        return self._unit(self.anchors, "anchor")

    @cached_property
    def unit_negatives(self) -> Tensor:
        """`[groups, M, hidden]` float64, each of length 1, zero where there is none; M is 0 without negatives."""
        if self.negatives is None:
            return self.unit_anchors[:, :0]
        there = self.has_negative[..., None]
        # Padding becomes a vector with a direction, then nothing.
        return self._unit(torch.where(there, self.negatives, 1.0), "negative") * there

    @cached_property
    def unit_swapped(self) -> Tensor | None:
        """`[groups, K, hidden]` float64, each of length 1."""
        return None if self.swapped is None else self._unit(self.swapped, "rollout with a swapped rationale")

    @cached_property
    def unit_bare(self) -> Tensor | None:
        """`[groups, hidden]` float64, each of length 1."""
        return None if self.bare is None else self._unit(self.bare, "the text without rationale")

    @cached_property
    def has_negative(self) -> Tensor:
        """True where there is a negative, `[groups, M]` bool; M is 0 without negatives."""
        if self.negatives is None:
            return self.truncated.new_empty((self.truncated.shape[0], 0), dtype=torch.bool)
        if self.negative_mask is None:
            return torch.ones(self.negatives.shape[:2], dtype=torch.bool, device=self.negatives.device)
        return self.negative_mask

    @cached_property
    def rollouts_to_anchors(self) -> Tensor:
        """Cosine of every rollout with every group's anchors, `[groups, K, groups, A]`."""
        return torch.einsum("gkh,jah->gkja", self.unit_rollouts, self.unit_anchors)

    @cached_property
    def rollouts_to_own_anchors(self) -> Tensor:
        """Cosine of every rollout with its own group's anchors, `[groups, K, A]`."""
        # diagonal() puts the shared axis last: [K, A, groups].
        return torch.diagonal(self.rollouts_to_anchors, dim1=0, dim2=2).permute(2, 0, 1)

    @cached_property
    def rollouts_to_negatives(self) -> Tensor:
        """Cosine of every rollout with its own group's negatives, `[groups, K, M]`; zero where there is none."""
        return self.unit_rollouts @ self.unit_negatives.transpose(1, 2)

    @cached_property
    def same_text(self) -> Tensor:
        """Groups whose query or positive is a text of this group's pair, itself too: no rivals, `[groups, groups]`."""
        if self.text_keys is None:
            return self.same_group
        pair = self.text_keys[:, :2]
        return (pair[:, None, :, None] == pair[None, :, None, :]).flatten(2).any(dim=-1)

    @cached_property
    def rival_negatives(self) -> Tensor:
        """Negatives that there are and that are no text of the group's own pair, `[groups, groups, M]` bool.

        Entry (i, j, m) is negative m of group j beside the pair of group i.
        """
        there = self.has_negative.expand(len(self.has_negative), -1, -1)
        if self.text_keys is None:
            return there
        pair, negatives = self.text_keys[:, None, None, :2], self.text_keys[None, :, 2:, None]
        return there & ~(pair == negatives).any(dim=-1)

    @cached_property
    def same_group(self) -> Tensor:
        """Identity mask, `[groups, groups]` bool."""
        return torch.eye(self.rollouts.shape[0], dtype=torch.bool, device=self.rollouts.device)

    def _unit(self, vectors: Tensor, what: str) -> Tensor:
        return _unit(vectors if self.differentiable else vectors.detach(), what)


def _unit(vectors: Tensor, what: str) -> Tensor:
    """Vectors `[groups, ..., hidden]` divided by their lengths, in float64."""
    vectors = vectors.double()
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
