"""Turn the losses of tokens into one number that does not depend on micro-batches and processes.

A loss function sums over its micro-batch with `token_weights`. The sum over all micro-batches and processes of a
mini-batch is divided once, by `denominator`. If each micro-batch were divided by its own count, the weight of a token
would depend on how it was packed.
"""

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


def token_weights(counted_NT: Tensor, config: ObjectiveConfig, dtype: torch.dtype) -> Tensor | None:
    """Return the weight of each counted token in the sum, flat `[tokens]`; None if all weights are 1.

    Args:
        counted_NT: `[N, T]` bool.
        config: The aggregation: sequence_mean weighs a token by 1 / the counted tokens of its rationale.
        dtype: Precision of the result.
    """
    if config.aggregation != "sequence_mean":
        return None
    lengths_N1 = counted_NT.sum(dim=1, keepdim=True).to(dtype)
    return (1.0 / lengths_N1).expand(counted_NT.shape)[counted_NT]


def counts(counted_NT: Tensor) -> Tensor:
    """Return the numbers of counted tokens and of rationales with one, float32 [2]; `denominator` needs their sums."""
    return torch.stack([counted_NT.sum(), counted_NT.any(dim=1).sum()]).float()


def denominator(tokens: float, rationales: float, config: ObjectiveConfig, max_tokens: int) -> float:
    """Return the number by which the summed loss of a mini-batch is divided.

    Args:
        tokens: Counted tokens of the mini-batch, over all processes.
        rationales: Rationales with a counted token, over all processes.
        config: token_mean: `tokens`; sequence_mean: `rationales`; constant: `rationales` x `length_normalizer`.
        max_tokens: Used if `length_normalizer` is null (Dr. GRPO, arXiv 2503.20783).

    Returns:
        At least 1, so that a mini-batch without counted tokens has a loss of 0.
    """
    match config.aggregation:
        case "token_mean":
            return max(tokens, 1.0)
        case "sequence_mean":
            return max(rationales, 1.0)
        case "constant":
            return max(rationales, 1.0) * (config.length_normalizer or max_tokens)
