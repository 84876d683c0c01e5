"""Per-token estimators of KL(policy || reference) from tokens the policy sampled.

Source: Schulman, http://joschu.net/blog/kl-approx.html, with r = reference / policy. As values, k1 and k3 are unbiased;
k3 is never negative and less noisy. k2 is biased, but little where the two policies are close. As losses, with the
gradient through `logprobs`, only k2 has the gradient of KL(policy || reference) in expectation. The gradient of k1 is
zero in expectation (the expected score vanishes), so it penalises nothing; that of k3 is KL(reference || policy)'s.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Upper bound of a log-ratio before it is exponentiated: exp(20) is 5e8, so that one token cannot make a sum infinite.

A token that a policy samples itself exceeds the bound with a probability below e^-20 (Markov: the ratio's mean is 1).
So a token at the bound is a numerical accident, and gets no gradient. There is no lower bound: the exponential is
harmless there, and a bound would remove the gradient of the tokens on which the policy has changed most."""


def bounded_log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the log of numerator / denominator, at most MAX_LOG_RATIO; both are log-probabilities of one shape."""
    return (numerator - denominator).clamp(max=MAX_LOG_RATIO)


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return -log r. Shapes `[...]`, nats."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return (log r)^2 / 2. Shapes `[...]`, nats."""
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return r - 1 - log r. Shapes `[...]`, nats."""
    log_ratio = bounded_log_ratio(reference_logprobs, logprobs)
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""The estimators by `KlConfig.estimator`."""
