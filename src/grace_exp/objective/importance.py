"""Truncated importance sampling between the engine that wrote the rationales and the policy that is trained.

Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
(https://fengyao.notion.site/off-policy-rl), where the weight is min(pi_trainer / pi_engine, C).
"""

import torch
from torch import Tensor

from grace_exp.config.objective import ImportanceConfig
from grace_exp.objective.kl import bounded_log_ratio


def row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the sums of `values` `[tokens]` over each rationale, `[count]`; `rows` `[tokens]` are the rationales."""
    return values.new_zeros(count).index_add(0, rows, values)


def importance_weights(old: Tensor, engine: Tensor, rows: Tensor, count: int, config: ImportanceConfig) -> Tensor:
    """Return the weight of every token before the cap: its own probability ratio, or that of its whole rationale.

    Args:
        old: The trainer's log-probs under the weights that the engine was given, `[tokens]` nats.
        engine: The engine's log-probs, finite, `[tokens]` nats.
        rows: Rationale of each token, `[tokens]`.
        count: Number of rationales.
        config: Its mode is token or sequence.

    Returns:
        `[tokens]`; log-ratios are bounded, so that no weight is infinite. Apply `config.cap` with `clamp(max=...)`.
    """
    if config.mode == "token":
        return bounded_log_ratio(old, engine).exp()
    total = row_sums(old - engine, rows, count)
    return bounded_log_ratio(total, torch.zeros_like(total)).exp()[rows]
