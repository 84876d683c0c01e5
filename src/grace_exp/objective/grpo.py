"""Clipped policy gradient with group-relative advantages."""

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.inputs import LossInputs
from grace_exp.objective.kl import KL_ESTIMATORS, bounded_log_ratio, k3


def grpo_loss(inputs: LossInputs, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over tokens of -min(ratio A, clip(ratio) A) + coefficient x KL.

    The surrogate is PPO's (arXiv 1707.06347), advantages and the KL in the loss are GRPO's (arXiv 2402.03300).

    A sum, so that it adds up over micro-batches: divide by the number of masked tokens of the whole mini-batch, over
    all its micro-batches and processes, to get the token mean that METHOD and the released code minimise. Dividing each
    micro-batch by its own count would weight its tokens by how they were packed.

    Args:
        inputs: One micro-batch.
        config: Clip range and KL.

    Returns:
        The loss, a scalar, and scalar sums over the same tokens (divide by the same count), without gradient:
        `surrogate` (the loss without KL), `ratio`, `clipped` (tokens where the clip cuts the gradient), `approx_kl`
        (k3 of the old policy against this one) and, with a reference, `kl_reference` (the configured estimator).

    Raises:
        ValueError: The KL coefficient is positive and there are no reference log-probs.
    """
    if config.kl.coefficient > 0 and inputs.reference_logprobs is None:
        raise ValueError(f"objective.kl.coefficient={config.kl.coefficient} needs reference_logprobs")
    # Selecting, not multiplying by the mask: padding may hold nan, and 0 x nan is nan.
    logprobs = inputs.logprobs[inputs.mask]
    old = inputs.old_logprobs.detach()[inputs.mask]
    advantages = inputs.advantages.detach()[:, None].expand(inputs.mask.shape)[inputs.mask]

    ratio = bounded_log_ratio(logprobs, old).exp()
    objective = ratio * advantages
    clipped_objective = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages
    loss = surrogate = -torch.minimum(objective, clipped_objective).sum()
    metrics = {
        "surrogate": surrogate.detach(),
        "ratio": ratio.detach().sum(),
        "clipped": (clipped_objective < objective).sum().to(loss.dtype),
        "approx_kl": k3(old, logprobs.detach()).sum(),
    }
    if inputs.reference_logprobs is not None:
        reference = inputs.reference_logprobs.detach()[inputs.mask]
        kl = KL_ESTIMATORS[config.kl.estimator](logprobs, reference).sum()
        metrics["kl_reference"] = kl.detach()
        loss = surrogate + config.kl.coefficient * kl
    return loss, metrics
