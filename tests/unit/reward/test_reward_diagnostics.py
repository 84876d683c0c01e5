"""Figures about the embedding space on configurations whose values are known."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grace_exp.reward import RewardInputs, embedding_metrics, in_batch_misses

Make = Callable[..., RewardInputs]


def _inputs(rollouts: Tensor, queries: Tensor, negatives: Tensor | None = None) -> RewardInputs:
    shape = rollouts.shape[:2]
    return RewardInputs(rollouts, queries[:, None], negatives, torch.zeros(shape, dtype=torch.bool), torch.ones(shape))


def test_orthogonal_groups() -> None:
    """Four texts, each with its own axis: distance sqrt 2 between groups, so uniformity is -2 x 2; rank 4."""
    axes = torch.eye(4)
    rollouts = axes[:, None].expand(4, 3, 4)
    metrics = embedding_metrics(_inputs(rollouts, axes, -axes[:, None]))
    expected = {
        "embed/cos_pos": 1.0,
        "embed/cos_neg": -1.0,
        "embed/cos_random": 0.0,
        "embed/margin": 1.0,
        "embed/in_batch_accuracy": 1.0,
        "embed/uniformity": -4.0,
        "embed/effective_rank": 4.0,
        "embed/augmentation_overlap": 0.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-5)


def test_collapsed_space_scores_nothing() -> None:
    """All vectors equal: no accuracy from ties, uniformity 0, rank 1."""
    metrics = embedding_metrics(_inputs(torch.ones(4, 3, 5), torch.ones(4, 5)))
    expected = {
        "embed/cos_pos": 1.0,
        "embed/cos_random": 1.0,
        "embed/margin": 0.0,
        "embed/in_batch_accuracy": 0.0,
        "embed/uniformity": 0.0,
        "embed/effective_rank": 1.0,
        "embed/augmentation_overlap": 1.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-4)


def test_accuracy_counts_rollouts_nearest_to_their_own_query() -> None:
    """One of four rollouts lies nearer to the other query."""
    rollouts = torch.tensor([[[1.0, 0.1], [0.1, 1.0]], [[0.2, 1.0], [0.0, 1.0]]])
    metrics = embedding_metrics(_inputs(rollouts, torch.eye(2)))
    assert metrics["embed/in_batch_accuracy"] == 0.75


def test_misses_by_group_are_what_accuracy_leaves_and_know_no_rivals_with_equal_texts() -> None:
    """As above: group 0 misses with one of two rollouts; with a text in common the groups are no rivals."""
    rollouts = torch.tensor([[[1.0, 0.1], [0.1, 1.0]], [[0.2, 1.0], [0.0, 1.0]]])
    inputs = _inputs(rollouts, torch.eye(2))
    assert in_batch_misses(inputs).tolist() == [0.5, 0.0]
    assert in_batch_misses(_inputs(torch.ones(2, 3, 2), torch.ones(2, 2))).tolist() == [1.0, 1.0]
    assert in_batch_misses(replace(inputs, text_keys_GX=torch.tensor([[1, 2], [3, 2]]))).tolist() == [0.0, 0.0]


def test_effective_rank_equals_entropy_of_singular_values(make_inputs: Make) -> None:
    """Roy & Vetterli's definition from a singular value decomposition."""
    inputs = make_inputs(5, 4, 1)
    singular = torch.linalg.svdvals(inputs.unit_rollouts_GKH.reshape(20, 12))
    shares = (singular / singular.sum()).tolist()
    expected = math.exp(-math.fsum(share * math.log(share) for share in shares))
    assert embedding_metrics(inputs)["embed/effective_rank"] == pytest.approx(expected, abs=1e-4)


def test_uniformity_is_wang_and_isolas_over_pairs_of_groups(make_inputs: Make) -> None:
    """With one rollout a text it is their measure over all pairs: torch.pdist, t = 2."""
    inputs = make_inputs(6, 1, 1)
    expected = torch.pdist(inputs.unit_rollouts_GKH.squeeze(1)).square().mul(-2).exp().mean().log()
    assert embedding_metrics(inputs)["embed/uniformity"] == pytest.approx(expected.item(), abs=1e-9)


def test_figures_that_need_others_are_left_out(make_inputs: Make) -> None:
    """One group without negatives has no random pair and no negative."""
    assert embedding_metrics(make_inputs(1, 3, None)).keys() == {"embed/cos_pos", "embed/effective_rank"}


def test_masked_negatives_and_all_anchor_samples_count_as_they_should(make_inputs: Make) -> None:
    """Padding is no negative; figures over anchors are the mean over their samples."""
    inputs = make_inputs(4, 3, 2, 2, masked=True)
    metrics = embedding_metrics(inputs)
    assert inputs.negative_mask_GM is not None and 0 < inputs.negative_mask_GM.sum() < 8
    there = inputs.rollouts_to_negatives_GKM.transpose(1, 2)[inputs.negative_mask_GM]
    assert metrics["embed/cos_neg"] == pytest.approx(there.mean().item())
    singles = [embedding_metrics(replace(inputs, anchors_GAH=inputs.anchors_GAH[:, [a]])) for a in range(2)]
    for name in ("cos_pos", "cos_random", "margin", "in_batch_accuracy"):
        expected = sum(single[f"embed/{name}"] for single in singles) / 2
        assert metrics[f"embed/{name}"] == pytest.approx(expected)
    none = replace(inputs, negative_mask_GM=inputs.negative_mask_GM & False)
    assert "embed/cos_neg" not in embedding_metrics(none)
