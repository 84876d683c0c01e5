"""The inputs of the reward: the embeddings of one step's rationales.

The capital letters at the end of a tensor's name are its dimensions; CONTRIBUTING.md lists them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from grace_exp.errors import GraceError


class EmbeddingError(GraceError):
    """An embedding is zero or not finite, so it has no cosine with another."""


@dataclass(frozen=True, eq=False)
class RewardInputs:
    """The embeddings of the groups of a step, over all processes.

    The reward reads only directions. Unit vectors are stored in float64, because autocast and TF32 do not change
    float64 products; either would cause errors of 1e-2 in totals that are divided by a temperature of 0.1. They carry
    no gradient, unless `differentiable` is set.

    Attributes:
        rollouts_GKH: Embeddings of the trained texts' rationales, `[groups, K, hidden]` float32.
        anchors_GAH: Embeddings of the other side of each pair, `[groups, A, hidden]` float32. A is 1 in the paper.
        negatives_GMH: Embeddings of each group's own negatives, `[groups, M, hidden]` float32, or None.
        truncated_GK: Rationales that reached the length limit without an end token, `[groups, K]` bool.
        lengths_GK: Rationale lengths, `[groups, K]` tokens.
        negative_mask_GM: True where `negatives_GMH` holds a negative, `[groups, M]` bool; None: everywhere. The other
            entries are padding with any values.
        trained: The side of the pair that the rollouts belong to; the anchors belong to the other side.
        max_tokens: Token limit of a rationale, or None if no term reads it.
        well_formed_GK: Share 0..1 from `terms.format.parse_rationale`, `[groups, K]`, or None.
        swapped_GKH: Embeddings of trained texts with another text's rationales, `[groups, K, hidden]`, or None. Entry
            (i, k) is the text of group i with rationale k of group `swapped_from[i]`.
        swapped_from_G: The groups whose rationales `swapped_GKH` holds, `[groups]` int64: a permutation of the groups
            without fixed points. None if `swapped_GKH` is None.
        bare_GH: Embeddings of the trained texts without rationale, `[groups, hidden]`, or None.
        text_keys_GX: A number for each text, equal for equal texts: query, positive, negatives,
            `[groups, 2 + M]` int64. None: all texts differ.
        differentiable: Whether unit vectors carry the gradient of the embeddings; see `gradient.reward_gradients`.

    Raises:
        EmbeddingError: An embedding is zero or holds nan or inf.
        ValueError: Shapes do not agree, or `swapped_from_G` is not such a permutation.
    """

    rollouts_GKH: Tensor
    anchors_GAH: Tensor
    negatives_GMH: Tensor | None
    truncated_GK: Tensor
    lengths_GK: Tensor
    negative_mask_GM: Tensor | None = None
    trained: Literal["positive", "query"] = "positive"
    max_tokens: int | None = None
    well_formed_GK: Tensor | None = None
    swapped_GKH: Tensor | None = None
    swapped_from_G: Tensor | None = None
    bare_GH: Tensor | None = None
    text_keys_GX: Tensor | None = None
    differentiable: bool = False

    def __post_init__(self) -> None:
        """Check shapes (broadcasting would hide a wrong one) and that every embedding has a direction."""
        groups, samples, hidden = self.rollouts_GKH.shape
        anchors = self.anchors_GAH.shape[1] if self.anchors_GAH.ndim == 3 else 1
        negatives = 0 if self.negatives_GMH is None else self.negatives_GMH.shape[1]
        expected: dict[str, tuple[int, ...]] = {
            "anchors_GAH": (groups, anchors, hidden),
            "negatives_GMH": (groups, negatives, hidden),
            "negative_mask_GM": (groups, negatives),
            "truncated_GK": (groups, samples),
            "lengths_GK": (groups, samples),
            "well_formed_GK": (groups, samples),
            "swapped_GKH": (groups, samples, hidden),
            "swapped_from_G": (groups,),
            "bare_GH": (groups, hidden),
            "text_keys_GX": (groups, 2 + negatives),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                found = tuple(tensor.shape)
                raise ValueError(f"{name} has shape {found}; rollouts {tuple(self.rollouts_GKH.shape)} ask for {shape}")
        if (self.swapped_GKH is None) != (self.swapped_from_G is None):
            raise ValueError("swapped_GKH and swapped_from_G go together")
        if self.swapped_from_G is not None:
            places = torch.arange(groups, device=self.swapped_from_G.device)
            if not torch.equal(self.swapped_from_G.sort().values, places) or (self.swapped_from_G == places).any():
                raise ValueError(
                    f"swapped_from_G {self.swapped_from_G.tolist()} is not a permutation of {groups} groups that moves "
                    "each"
                )
        # Checked here rather than at first use, so that a bad embedding is reported for any set of terms.
        _ = (
            self.unit_rollouts_GKH,
            self.unit_anchors_GAH,
            self.unit_negatives_GMH,
            self.unit_swapped_GKH,
            self.unit_bare_GH,
        )

    @cached_property
    def unit_rollouts_GKH(self) -> Tensor:
        """Unit vectors of the rollouts, `[groups, K, hidden]` float64."""
        return self._unit(self.rollouts_GKH, "rollout")

    @cached_property
    def unit_anchors_GAH(self) -> Tensor:
        """Unit vectors of the anchors, `[groups, A, hidden]` float64."""
        return self._unit(self.anchors_GAH, "anchor")

    @cached_property
    def unit_negatives_GMH(self) -> Tensor:
        """Unit vectors of the negatives, `[groups, M, hidden]` float64, 0 where there is none; M may be 0."""
        if self.negatives_GMH is None:
            return self.unit_anchors_GAH[:, :0]
        there_GM1 = self.has_negative_GM[..., None]
        # Padding is replaced by a vector with a direction, and then set to zero.
        return self._unit(torch.where(there_GM1, self.negatives_GMH, 1.0), "negative") * there_GM1

    @cached_property
    def unit_swapped_GKH(self) -> Tensor | None:
        """Unit vectors of `swapped_GKH`, `[groups, K, hidden]` float64."""
        return None if self.swapped_GKH is None else self._unit(self.swapped_GKH, "rollout with a swapped rationale")

    @cached_property
    def unit_bare_GH(self) -> Tensor | None:
        """Unit vectors of `bare_GH`, `[groups, hidden]` float64."""
        return None if self.bare_GH is None else self._unit(self.bare_GH, "the text without rationale")

    @cached_property
    def has_negative_GM(self) -> Tensor:
        """True where there is a negative, `[groups, M]` bool; M is 0 without negatives."""
        if self.negatives_GMH is None:
            return self.truncated_GK.new_empty((self.truncated_GK.shape[0], 0), dtype=torch.bool)
        if self.negative_mask_GM is None:
            return torch.ones(self.negatives_GMH.shape[:2], dtype=torch.bool, device=self.negatives_GMH.device)
        return self.negative_mask_GM

    @cached_property
    def rollouts_to_anchors_GKGA(self) -> Tensor:
        """Cosine of every rollout with every group's anchors, `[groups, K, groups, A]`."""
        return torch.einsum("gkh,jah->gkja", self.unit_rollouts_GKH, self.unit_anchors_GAH)

    @cached_property
    def rollouts_to_own_anchors_GKA(self) -> Tensor:
        """Cosine of every rollout with its own group's anchors, `[groups, K, A]`."""
        # diagonal() puts the shared axis last: [K, A, groups].
        return torch.diagonal(self.rollouts_to_anchors_GKGA, dim1=0, dim2=2).permute(2, 0, 1)

    @cached_property
    def rollouts_to_negatives_GKM(self) -> Tensor:
        """Cosine of every rollout with its own group's negatives, `[groups, K, M]`; zero where there is none."""
        return self.unit_rollouts_GKH @ self.unit_negatives_GMH.transpose(1, 2)

    @cached_property
    def same_text_GG(self) -> Tensor:
        """True for groups that share a query or positive with this group, itself included, `[groups, groups]`."""
        if self.text_keys_GX is None:
            return self.same_group_GG
        pair_G2 = self.text_keys_GX[:, :2]
        return (pair_G2[:, None, :, None] == pair_G2[None, :, None, :]).flatten(2).any(dim=-1)

    @cached_property
    def rival_negatives_GGM(self) -> Tensor:
        """True for negatives that exist and are not a text of the group's own pair, `[groups, groups, M]` bool.

        Entry (i, j, m) is negative m of group j, compared with the pair of group i.
        """
        there_GGM = self.has_negative_GM.expand(len(self.has_negative_GM), -1, -1)
        if self.text_keys_GX is None:
            return there_GGM
        pair_G112, negatives_1GM1 = self.text_keys_GX[:, None, None, :2], self.text_keys_GX[None, :, 2:, None]
        return there_GGM & ~(pair_G112 == negatives_1GM1).any(dim=-1)

    @cached_property
    def same_group_GG(self) -> Tensor:
        """Identity mask, `[groups, groups]` bool."""
        return torch.eye(self.rollouts_GKH.shape[0], dtype=torch.bool, device=self.rollouts_GKH.device)

    def _unit(self, vectors_xH: Tensor, what: str) -> Tensor:
        return _unit(vectors_xH if self.differentiable else vectors_xH.detach(), what)


def _unit(vectors_xH: Tensor, what: str) -> Tensor:
    """Return vectors `[groups, ..., hidden]` divided by their lengths, in float64."""
    vectors_xH = vectors_xH.double()
    # Lengths neither overflow nor underflow: squares of float32 magnitudes fit into float64.
    lengths_x1 = vectors_xH.norm(dim=-1, keepdim=True)
    bad_x1 = ~torch.isfinite(lengths_x1) | (lengths_x1 == 0)
    if bad_x1.any():
        group, *rest, _ = bad_x1.nonzero()[0].tolist()
        name = " ".join([what, *map(str, rest)])
        problem = "is zero" if lengths_x1[group, *rest].item() == 0 else "holds nan or inf"
        raise EmbeddingError(
            f"group {group}: the embedding of {name} {problem} ({int(bad_x1.sum())} of {bad_x1.numel()} such vectors "
            "are bad), so it has no direction to reward. The model's activations have broken down: check its "
            "weights and hardware.precision, or lower optim.learning_rate."
        )
    unit_xH: Tensor = vectors_xH / lengths_x1
    return unit_xH
