"""The share of rationales nearest to another text's."""

import math
from collections.abc import Callable

import pytest
import torch

from grace_exp.reward import RewardInputs, augmentation_overlap

Make = Callable[..., RewardInputs]


def test_texts_told_apart_do_not_overlap_and_a_collapsed_space_does_wholly() -> None:
    apart = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 3, 4)
    assert augmentation_overlap(apart) == 0.0
    assert augmentation_overlap(apart[:1].expand(4, 3, 4)) == 1.0


def test_one_stray_rationale_is_counted_where_it_strays() -> None:
    """On a circle: 0 and 10 degrees against 90, 100 and a stray at 15 of the second text, whose neighbour it takes."""
    degrees = torch.tensor([[0.0, 10.0, 350.0], [90.0, 100.0, 14.0]], dtype=torch.float64) * math.pi / 180
    assert augmentation_overlap(torch.stack([degrees.cos(), degrees.sin()], dim=-1)) == pytest.approx(2 / 6)


def test_rationales_that_tell_nothing_overlap_by_chance() -> None:
    """Of 10 x 4 equally distributed vectors 36 of the other 39 are another text's: 0.923."""
    draw = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(100):
        vectors = torch.randn(10, 4, 16, generator=draw, dtype=torch.float64)
        shares.append(augmentation_overlap(vectors / vectors.norm(dim=-1, keepdim=True)))
    assert sum(shares) / 100 == pytest.approx(36 / 39, abs=0.02)


def test_order_of_groups_and_rationales_does_not_matter(make_inputs: Make) -> None:
    unit = make_inputs(6, 4).unit_rollouts_GKH
    assert augmentation_overlap(unit.flip(0, 1)) == augmentation_overlap(unit)
