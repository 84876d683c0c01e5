"""How the losses of tokens become one number, whatever the micro-batches and processes.

A loss function sums over its micro-batch with `token_weights`; the sum over all micro-batches and processes of a
mini-batch is divided once, by `denominator`. Dividing each micro-batch by its own count would weight its tokens by how
they were packed.
"""

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


def token_weights(counted_NT: Tensor, config: ObjectiveConfig, dtype: torch.dtype) -> Tensor | None:
    """Weight of each counted token in the sum, flat `[tokens]`; None where all weigh 1.

    Args:
        counted_NT: `[N, T]` bool.
        config: Chooses the aggregation: sequence_mean weighs a token by 1 / the counted tokens of its rationale.
        dtype: Of the result.
    """
    if config.aggregation != "sequence_mean":
        return None
    lengths_N1 = counted_NT.sum(dim=1, keepdim=True).to(dtype)
    return (1.0 / lengths_N1).expand(counted_NT.shape)[counted_NT]


def counts(counted_NT: Tensor) -> Tensor:
    """Counted tokens, and rationales with any: the two that `denominator` needs, summed over processes, float32 [2]."""
    return torch.stack([counted_NT.sum(), counted_NT.any(dim=1).sum()]).float()


def denominator(tokens: float, rationales: float, config: ObjectiveConfig, max_tokens: int) -> float:
    """What the summed loss of a mini-batch is divided by.

    Args:
        tokens: Counted tokens of the mini-batch, over all processes.
        rationales: Rationales with a counted token, over all processes.
        config: token_mean: `tokens`; sequence_mean: `rationales`; constant: `rationales` x `length_normalizer`.
        max_tokens: Takes the place of a `length_normalizer` that is null (Dr. GRPO, arXiv 2503.20783).

    Returns:
        At least 1, so that a mini-batch of which nothing counts has a loss of 0.
    """
    match config.aggregation:
        case "token_mean":
            return max(tokens, 1.0)
        case "sequence_mean":
            return max(rationales, 1.0)
        case "constant":
            return max(rationales, 1.0) * (config.length_normalizer or max_tokens)
