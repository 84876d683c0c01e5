"""The two losses that algorithms share, and the parts of every loss: importance weights, KL, entropy, aggregation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.aggregate import token_weights
from grace_exp.objective.importance import importance_weights
from grace_exp.objective.kl import KL_ESTIMATORS, bounded_log_ratio, k3
from grace_exp.objective.loss_inputs import LossInputs


@dataclass(frozen=True, eq=False)
class CountedTokens:
    """The counted tokens of a micro-batch, flat.

    Attributes:
        logprobs: `[tokens]` nats, with gradient.
        old: `[tokens]` nats.
        advantages: Advantage of the token's rationale, `[tokens]`.
        rows: Number of the token's rationale, `[tokens]`.
    """

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    rows: Tensor


def counted(inputs: LossInputs) -> CountedTokens:
    """Select the counted tokens. A product with the mask would not do: padding may be nan, and 0 x nan is nan."""
    counted_NT = inputs.counted_NT
    rows = counted_NT.nonzero()[:, 0]
    return CountedTokens(
        inputs.logprobs_NT[counted_NT],
        inputs.old_logprobs_NT.detach()[counted_NT],
        inputs.advantages_N.detach()[rows],
        rows,
    )


def clipped_loss(inputs: LossInputs, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), summed over tokens (PPO, arXiv 1707.06347).

    Args:
        inputs: One micro-batch.
        config: The clip range, and what `summed_loss` adds.

    Returns:
        As `summed_loss`.
    """
    tokens = counted(inputs)
    return clipped(tokens, bounded_log_ratio(tokens.logprobs, tokens.old).exp(), inputs, config)


def clipped(
    tokens: CountedTokens, ratio: Tensor, inputs: LossInputs, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clipped surrogate for the caller's probability ratio `[tokens]`; it adds the metric `clipped`."""
    objective = ratio * tokens.advantages
    clipped_objective = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * tokens.advantages
    loss, metrics = summed_loss(tokens, -torch.minimum(objective, clipped_objective), ratio, inputs, config)
    return loss, metrics | {"clipped": (clipped_objective < objective).sum().to(loss.dtype)}


def score_function_loss(inputs: LossInputs, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return -A log pi, summed over tokens (REINFORCE), without ratio and clip.

    Args:
        inputs: One micro-batch.
        config: What `summed_loss` adds.

    Returns:
        As `summed_loss`.
    """
    tokens = counted(inputs)
    ratio = bounded_log_ratio(tokens.logprobs.detach(), tokens.old).exp()
    return summed_loss(tokens, -tokens.advantages * tokens.logprobs, ratio, inputs, config)


def summed_loss(
    tokens: CountedTokens, surrogate: Tensor, ratio: Tensor, inputs: LossInputs, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return importance weight x surrogate + KL coefficient x KL - entropy coefficient x entropy, summed with weights.

    It is a sum, so that micro-batches can be added: divide by `aggregate.denominator`.

    Args:
        tokens: The counted tokens.
        surrogate: The algorithm's loss of each token, `[tokens]`.
        ratio: Present to old probability, `[tokens]`, for the metric.
        inputs: The micro-batch, for its other tensors.
        config: Importance, KL, entropy and aggregation.

    Returns:
        The loss, a scalar, and scalar sums over the counted tokens (divide by their number), without gradient:
        `surrogate`, `ratio`, `approx_kl` (k3 of the old policy against this one) and, where they apply, `importance`
        (the weights), `kl_reference` (the configured estimator) and `entropy`.

    Raises:
        ValueError: The settings need reference log-probs, engine log-probs or entropies that are None.
    """
    counted_NT = inputs.counted_NT
    weights = token_weights(counted_NT, config, tokens.logprobs.dtype)
    metrics = {"ratio": ratio.detach().sum(), "approx_kl": k3(tokens.old, tokens.logprobs.detach()).sum()}
    if config.importance.mode != "none":
        if inputs.engine_logprobs_NT is None:
            raise ValueError(f"objective.importance.mode={config.importance.mode} needs engine_logprobs")
        engine = inputs.engine_logprobs_NT[counted_NT]
        importance = importance_weights(tokens.old, engine, tokens.rows, len(counted_NT), config.importance)
        importance = importance.clamp(max=config.importance.cap)
        surrogate = surrogate * importance
        metrics["importance"] = importance.sum()
    metrics["surrogate"] = surrogate.detach().sum()
    loss = _sum(surrogate, weights)
    penalised = config.kl.coefficient > 0 and config.kl.placement == "loss"
    if penalised and inputs.reference_logprobs_NT is None:
        raise ValueError(f"objective.kl.coefficient={config.kl.coefficient} needs reference_logprobs")
    if inputs.reference_logprobs_NT is not None:
        kl = KL_ESTIMATORS[config.kl.estimator](tokens.logprobs, inputs.reference_logprobs_NT.detach()[counted_NT])
        metrics["kl_reference"] = kl.detach().sum()
        if penalised:
            loss = loss + config.kl.coefficient * _sum(kl, weights)
    if config.entropy_coefficient > 0:
        if inputs.entropy_NT is None:
            raise ValueError(f"objective.entropy_coefficient={config.entropy_coefficient} needs entropies")
        entropy = inputs.entropy_NT[counted_NT]
        metrics["entropy"] = entropy.detach().sum()
        loss = loss - config.entropy_coefficient * _sum(entropy, weights)
    return loss, metrics


def _sum(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights).sum()
