"""The clipped loss: closed forms, clip regions, and padding that does not count."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from grace_exp.config.objective import KlConfig, ObjectiveConfig
from grace_exp.objective import KL_ESTIMATORS, LOSSES, LossInputs, grpo_loss

CONFIG = ObjectiveConfig(clip_low=0.2, clip_high=0.3)
NAN = float("nan")


def _inputs(ratio: float = 1.0, rows: int = 3, length: int = 5) -> LossInputs:
    draw = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(rows, length, generator=draw, dtype=torch.float64)
    return LossInputs(
        logprobs=(old + torch.tensor(ratio, dtype=torch.float64).log()).requires_grad_(),
        old_logprobs=old,
        advantages=torch.randn(rows, generator=draw, dtype=torch.float64),
        mask=torch.arange(length) < torch.tensor([length, 2, 1])[:rows, None],
        reference_logprobs=None,
    )


def _gradient(inputs: LossInputs, config: ObjectiveConfig = CONFIG) -> Tensor:
    return torch.autograd.grad(grpo_loss(inputs, config)[0], inputs.logprobs)[0]


def test_registry_names_the_schemas_objective() -> None:
    """A config's name finds its loss."""
    assert LOSSES[ObjectiveConfig().name] is grpo_loss


def test_at_ratio_one_the_loss_is_minus_the_sum_of_advantages_and_its_gradient_policy_gradient() -> None:
    """d/d logp of -ratio A at ratio 1 is -A at the rationale's tokens and 0 at padding."""
    inputs = _inputs()
    loss, metrics = grpo_loss(inputs, CONFIG)
    per_token = inputs.advantages[:, None] * inputs.mask
    torch.testing.assert_close(loss, -per_token.sum())
    torch.testing.assert_close(_gradient(inputs), -per_token)
    tokens = inputs.mask.sum().item()
    assert metrics["ratio"].item() == tokens == 8
    assert metrics["clipped"].item() == metrics["approx_kl"].item() == 0
    assert metrics["surrogate"].item() == loss.item()
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # Inside the range: -r A, gradient -r A.
        (1.1, 2.0, -2.2, -2.2, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        # Outside, where the objective would still improve: the clip cuts.
        (1.5, 2.0, -2.6, 0.0, 1),
        (0.5, -2.0, 1.6, 0.0, 1),
        # Outside, where it has become worse: no clip, the way back stays open.
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, -2.0, 3.0, 3.0, 0),
        # Nothing to gain or lose.
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clip_regions(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    """PPO's six regions with an asymmetric range [0.8, 1.3]."""
    inputs = replace(_inputs(ratio, 1, 1), advantages=torch.tensor([advantage], dtype=torch.float64))
    found, metrics = grpo_loss(inputs, CONFIG)
    assert found.item() == pytest.approx(loss)
    assert _gradient(inputs).item() == pytest.approx(gradient, abs=1e-12)
    assert metrics["clipped"].item() == clipped
    assert metrics["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize("padding", [NAN, float("inf"), -float("inf"), 1e30])
def test_padding_adds_nothing(padding: float) -> None:
    """Whatever it holds, in each of the tensors, to loss, metrics and gradient."""
    config = replace(CONFIG, kl=KlConfig(coefficient=0.1))
    clean = _inputs(1.1)
    clean = replace(clean, reference_logprobs=clean.old_logprobs - 0.3)
    assert clean.reference_logprobs is not None
    dirty = replace(
        clean,
        logprobs=clean.logprobs.detach().masked_fill(~clean.mask, padding).requires_grad_(),
        old_logprobs=clean.old_logprobs.masked_fill(~clean.mask, -padding),
        reference_logprobs=clean.reference_logprobs.masked_fill(~clean.mask, padding),
    )
    expected, found = grpo_loss(clean, config), grpo_loss(dirty, config)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    gradient = _gradient(dirty, config)
    torch.testing.assert_close(gradient, _gradient(clean, config), rtol=0, atol=0)
    assert (gradient[~clean.mask] == 0).all()


def test_micro_batches_add_up() -> None:
    """Loss and metrics of the rows taken one by one sum to those of all."""
    inputs = _inputs(1.25)
    whole, metrics = grpo_loss(inputs, CONFIG)
    parts = [
        grpo_loss(
            LossInputs(
                inputs.logprobs[row : row + 1],
                inputs.old_logprobs[row : row + 1],
                inputs.advantages[row : row + 1],
                inputs.mask[row : row + 1],
                None,
            ),
            CONFIG,
        )
        for row in range(3)
    ]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), whole)
    for name, value in metrics.items():
        torch.testing.assert_close(torch.stack([figures[name] for _, figures in parts]).sum(), value)


def test_rows_without_tokens_give_a_zero_that_can_be_backpropagated() -> None:
    """Every process must take part in backward."""
    inputs = _inputs()
    inputs = replace(inputs, mask=torch.zeros_like(inputs.mask))
    assert grpo_loss(inputs, CONFIG)[0].item() == 0
    assert (_gradient(inputs) == 0).all()


def test_zero_advantages_give_zero_gradient() -> None:
    """Equal rewards train nothing, on policy or off it."""
    inputs = replace(_inputs(1.7), advantages=torch.zeros(3, dtype=torch.float64))
    assert (_gradient(inputs) == 0).all()


def test_gradient_flows_through_the_policy_only() -> None:
    """Old, reference and advantages are constants even when handed over with a graph."""
    inputs = _inputs()
    constants = [inputs.old_logprobs, inputs.advantages, inputs.old_logprobs - 0.1]
    old, advantages, reference = (values.clone().requires_grad_() for values in constants)
    inputs = replace(inputs, old_logprobs=old, advantages=advantages, reference_logprobs=reference)
    loss, _ = grpo_loss(inputs, replace(CONFIG, kl=KlConfig(coefficient=0.5)))
    loss.backward()
    assert inputs.logprobs.grad is not None
    assert old.grad is None and advantages.grad is None and reference.grad is None


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_added_per_token(estimator: Literal["k1", "k2", "k3"]) -> None:
    """Loss = surrogate + coefficient x sum of the estimator over the rationale's tokens."""
    inputs = _inputs(1.1)
    reference = inputs.old_logprobs - 0.4
    config = replace(CONFIG, kl=KlConfig(coefficient=0.3, estimator=estimator))
    loss, metrics = grpo_loss(replace(inputs, reference_logprobs=reference), config)
    kl = (KL_ESTIMATORS[estimator](inputs.logprobs, reference) * inputs.mask).sum()
    torch.testing.assert_close(metrics["kl_reference"], kl.detach())
    torch.testing.assert_close(loss, metrics["surrogate"] + 0.3 * kl)


def test_approx_kl_is_k3_of_old_against_new() -> None:
    """All ratios r: k3 a token is r - 1 - log r."""
    _, metrics = grpo_loss(_inputs(1.1), CONFIG)
    expected = 8 * (0.1 - torch.tensor(1.1, dtype=torch.float64).log().item())
    assert metrics["approx_kl"].item() == pytest.approx(expected)


def test_huge_ratios_stay_finite() -> None:
    """exp(300) is infinite in float32: one token would make the step's gradient nan."""
    inputs = LossInputs(
        logprobs=torch.tensor([[-1.0], [-1.0]], requires_grad=True),
        old_logprobs=torch.full((2, 1), -301.0),
        advantages=torch.tensor([1.0, -1.0]),
        mask=torch.ones(2, 1, dtype=torch.bool),
        reference_logprobs=None,
    )
    loss, metrics = grpo_loss(inputs, CONFIG)
    assert torch.stack([loss, *metrics.values()]).isfinite().all()
    assert _gradient(inputs).isfinite().all()


def test_positive_kl_coefficient_without_reference_is_an_error() -> None:
    """A penalty asked for is never dropped."""
    with pytest.raises(ValueError, match=r"objective\.kl\.coefficient=0\.1 needs reference_logprobs"):
        grpo_loss(_inputs(), replace(CONFIG, kl=KlConfig(coefficient=0.1)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("old_logprobs", torch.zeros(1, 5)),
        ("mask", torch.ones(3, 1, dtype=torch.bool)),
        ("mask", torch.ones(3, 5, dtype=torch.int64)),
        ("advantages", torch.zeros(3, 1)),
        ("reference_logprobs", torch.zeros(5)),
    ],
)
def test_inputs_that_would_broadcast_are_errors(field: str, value: Tensor) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=field):
        replace(_inputs(), **{field: value})
