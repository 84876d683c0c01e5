"""KL estimators on a categorical distribution small enough to enumerate."""

import math

import pytest
import torch
from torch import Tensor

from grace_exp.config.objective import KlConfig
from grace_exp.objective import KL_ESTIMATORS
from grace_exp.objective.kl import MAX_LOG_RATIO

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def _expectation(estimator: str, policy: Tensor) -> Tensor:
    """Over tokens drawn from the policy; the draw itself carries no gradient, as in a rollout."""
    return (policy.detach().exp() * KL_ESTIMATORS[estimator](policy, REFERENCE)).sum()


def _gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_registry_has_the_names_of_the_schema() -> None:
    """Every name that a config may hold is there."""
    for name in KL_ESTIMATORS:
        KlConfig(estimator=name)  # type: ignore[arg-type]
    assert set(KL_ESTIMATORS) == {"k1", "k2", "k3"}


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_is_the_divergence(estimator: str) -> None:
    """E[k1] = E[k3] = KL(policy || reference)."""
    policy = LOGITS.log_softmax(-1)
    torch.testing.assert_close(_expectation(estimator, policy), _kl(policy, REFERENCE))


def test_k2_is_half_the_second_moment_and_close_for_close_policies() -> None:
    """Biased, but of second order: the relative error vanishes with the distance."""
    for distance, tolerance in ((0.1, 0.1), (0.01, 0.01)):
        policy = (REFERENCE + distance * LOGITS).log_softmax(-1)
        torch.testing.assert_close(_expectation("k2", policy), _kl(policy, REFERENCE), rtol=tolerance, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expected_gradient(estimator: str) -> None:
    """k1's vanishes, k2's is that of KL(policy || reference), k3's that of KL(reference || policy)."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    expected = {
        "k1": torch.zeros_like(logits),
        "k2": _gradient(_kl(policy, REFERENCE), logits),
        "k3": _gradient(_kl(REFERENCE, logits.log_softmax(-1)), logits),
    }[estimator]
    found = _gradient(_expectation(estimator, logits.log_softmax(-1)), logits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_equal_policies_are_at_distance_zero(estimator: str) -> None:
    """Exactly, so that a first step has no KL."""
    assert (KL_ESTIMATORS[estimator](REFERENCE, REFERENCE) == 0).all()


def test_k3_is_exact_for_tiny_differences() -> None:
    """x^2 / 2 to first order; exp(x) - 1 - x would cancel to noise of either sign in float32."""
    log_ratios = torch.linspace(-1e-3, 1e-3, 100)
    values = KL_ESTIMATORS["k3"](torch.zeros(100), log_ratios)
    torch.testing.assert_close(values, log_ratios.square() / 2, rtol=1e-3, atol=1e-10)


def test_k3_stays_finite_beyond_the_bound_and_has_no_gradient_there() -> None:
    """exp(200) would be infinite in float32."""
    logprob = torch.tensor(-200.0, requires_grad=True)
    value = KL_ESTIMATORS["k3"](logprob, torch.tensor(0.0))
    value.backward()
    assert value.item() == pytest.approx(math.expm1(MAX_LOG_RATIO) - MAX_LOG_RATIO, rel=1e-6)
    assert logprob.grad is not None
    assert logprob.grad.item() == 0


def test_k3_pulls_back_from_tokens_the_reference_thinks_impossible() -> None:
    """No bound on that side: the gradient is 1 - r, here 1."""
    logprob = torch.tensor(-0.1, requires_grad=True)
    KL_ESTIMATORS["k3"](logprob, torch.tensor(-60.0)).backward()
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(1.0)
