"""Directions of embeddings, and the errors of those that have none."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from grace_exp.errors import GraceError
from grace_exp.reward.inputs import EmbeddingError, RewardInputs

Make = Callable[..., RewardInputs]


def test_unit_vectors_have_length_one_and_no_gradient(make_inputs: Make) -> None:
    """Whatever the embeddings' lengths; no gradient flows through the embedding (METHOD 2)."""
    inputs = make_inputs()
    inputs = replace(
        inputs, rollouts_GKH=(inputs.rollouts_GKH * torch.tensor([1e-42, 1e-20, 1e36])[:, None]).requires_grad_()
    )
    assert torch.allclose(inputs.unit_rollouts_GKH.norm(dim=-1), torch.ones(4, 3, dtype=torch.float64), atol=1e-12)
    assert not inputs.unit_rollouts_GKH.requires_grad


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("rollouts_GKH", (2, 1), 0.0, "group 2: the embedding of rollout 1 is zero"),
        ("rollouts_GKH", (0, 2), float("nan"), "group 0: the embedding of rollout 2 holds nan or inf"),
        ("anchors_GAH", (3, 0), float("inf"), "group 3: the embedding of anchor 0 holds nan or inf"),
        ("negatives_GMH", (1, 0), -float("inf"), "group 1: the embedding of negative 0 holds nan or inf"),
        ("swapped_GKH", (1, 2), 0.0, "group 1: the embedding of rollout with a swapped rationale 2 is zero"),
        ("bare_GH", (0,), float("nan"), "group 0: the embedding of the text without rationale holds nan or inf"),
    ],
)
def test_embedding_without_direction_is_an_error_naming_the_group(
    make_inputs: Make, field: str, index: tuple[int, ...], value: float, message: str
) -> None:
    """Never a reward of zero or nan."""
    inputs = make_inputs()
    broken = getattr(inputs, field).clone()
    broken[index] = value
    with pytest.raises(EmbeddingError, match=message) as caught:
        replace(inputs, **{field: broken})
    assert isinstance(caught.value, GraceError)


def test_single_nan_component_is_found(make_inputs: Make) -> None:
    """It need not fill the vector."""
    inputs = make_inputs()
    broken = inputs.rollouts_GKH.clone()
    broken[1, 0, 5] = float("nan")
    with pytest.raises(EmbeddingError, match=r"group 1: .* rollout 0 .*1 of 12 such vectors"):
        replace(inputs, rollouts_GKH=broken)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("anchors_GAH", (1, 1, 12)),
        ("anchors_GAH", (4, 12)),
        ("negatives_GMH", (1, 2, 12)),
        ("negative_mask_GM", (4, 2)),
        ("truncated_GK", (4, 1)),
        ("lengths_GK", (3, 4)),
        ("well_formed_GK", (4,)),
        ("swapped_GKH", (4, 1, 12)),
        ("swapped_from_G", (3,)),
        ("bare_GH", (4, 1, 12)),
    ],
)
def test_shapes_that_would_broadcast_are_errors(make_inputs: Make, field: str, shape: tuple[int, ...]) -> None:
    """The message names the field and the shape asked for."""
    with pytest.raises(ValueError, match=f"{field} has shape"):
        replace(make_inputs(), **{field: torch.ones(shape)})


@pytest.mark.parametrize("owners", [[1, 1, 3, 0], [0, 2, 3, 1], None])
def test_every_text_borrows_the_rationales_of_one_other(make_inputs: Make, owners: list[int] | None) -> None:
    """Anything else would charge the wrong rationale."""
    with pytest.raises(ValueError, match="swapped_from"):
        replace(make_inputs(), swapped_from_G=None if owners is None else torch.tensor(owners))


def test_similarities_are_exact_under_autocast(make_inputs: Make) -> None:
    """Training steps run under bf16 autocast, whose cosines would be off by 1e-3 before division by 0.1."""
    inputs = make_inputs()
    expected = inputs.rollouts_to_anchors_GKGA
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_inputs().rollouts_to_anchors_GKGA, expected)
