"""Per-token estimators of KL(policy || reference) from tokens the policy sampled.

Schulman, http://joschu.net/blog/kl-approx.html, with r = reference / policy. As values, k1 and k3 are unbiased, and k3
is never negative and less noisy; k2 is biased, but close where the two policies are. As losses, with the gradient
flowing through `logprobs`, only k2 has the gradient of KL(policy || reference) in expectation: k1's is zero (the
expected score vanishes), so that it penalises nothing, and k3's is that of KL(reference || policy).
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Upper bound of a log-ratio that is exponentiated: exp(20) is 5e8, so that one token cannot make a sum infinite.

A token that a policy samples itself has a ratio beyond it with a probability under e^-20 (Markov: the ratio's mean is
1), so a token that meets the bound is an accident of numerics, and gets no gradient. There is no lower bound: the
exponential is harmless there, and a bound would take the gradient from the tokens the policy has moved to most."""


def bounded_log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Log of numerator / denominator, both log-probabilities of one shape, at most MAX_LOG_RATIO."""
    return (numerator - denominator).clamp(max=MAX_LOG_RATIO)


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """-log r. Shapes `[...]`, nats."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log r)^2 / 2. Shapes `[...]`, nats."""
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Ratio form r - 1 - log r. Shapes `[...]`, nats."""
    log_ratio = bounded_log_ratio(reference_logprobs, logprobs)
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By `KlConfig.estimator`."""
