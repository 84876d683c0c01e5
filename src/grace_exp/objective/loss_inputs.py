"""The inputs of advantages and policy losses, and the parts of an algorithm.

The capital letters at the end of a tensor's name are its dimensions; CONTRIBUTING.md lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


@dataclass(frozen=True, eq=False)
class AdvantageInputs:
    """All groups of a step, over all processes: means and deviations over a share of them would differ.

    Attributes:
        rewards_GK: `[groups, K]`.
        kept_GK: False for rationales that are left out of advantages, means and deviations, `[groups, K]` bool.
        lengths_GK: Rationale lengths, `[groups, K]` tokens.
        max_tokens: Token limit of a rationale.
        baseline_G: Reward of the greedy rationale, `[groups]`; for `remax`.
        reference_kl_GK: Estimated KL to the reference, summed over the rationale, `[groups, K]` nats; for a penalty in
            the reward.

    Raises:
        ValueError: Shapes do not agree, or `kept` is not bool.
    """

    rewards_GK: Tensor
    kept_GK: Tensor
    lengths_GK: Tensor
    max_tokens: int
    baseline_G: Tensor | None = None
    reference_kl_GK: Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes that would otherwise broadcast."""
        shape = self.rewards_GK.shape
        _require(shape, kept_GK=self.kept_GK, lengths_GK=self.lengths_GK, reference_kl_GK=self.reference_kl_GK)
        _require(shape[:1], baseline_G=self.baseline_G)
        _require_bool(kept_GK=self.kept_GK)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch of rationales.

    Attributes:
        logprobs_NT: Log-probs of the sampled tokens under the policy being trained, `[N, T]` nats; with gradient.
        old_logprobs_NT: Log-probs under the policy before the update, `[N, T]` nats.
        advantages_N: Advantage of each rationale, `[N]`.
        mask_NT: True at the rationale's tokens, `[N, T]` bool. Elsewhere the other tensors may hold any value.
        reference_logprobs_NT: Log-probs under the reference model, `[N, T]` nats, or None if there is none.
        engine_logprobs_NT: Log-probs from the engine that wrote the tokens, `[N, T]` nats; a token whose value is nan
            or infinite is left out. None: every token of the mask counts.
        entropy_NT: Entropy of the policy's distribution at each token, `[N, T]` nats; with gradient. None without
            bonus.
        kept_N: False for rationales that are left out, `[N]` bool; None: all are kept.

    Raises:
        ValueError: Shapes do not agree, or `mask` or `kept` is not bool.
    """

    logprobs_NT: Tensor
    old_logprobs_NT: Tensor
    advantages_N: Tensor
    mask_NT: Tensor
    reference_logprobs_NT: Tensor | None = None
    engine_logprobs_NT: Tensor | None = None
    entropy_NT: Tensor | None = None
    kept_N: Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and types that would otherwise broadcast, or index, into a wrong loss."""
        shape = self.logprobs_NT.shape
        _require(
            shape,
            old_logprobs_NT=self.old_logprobs_NT,
            mask_NT=self.mask_NT,
            reference_logprobs_NT=self.reference_logprobs_NT,
            engine_logprobs_NT=self.engine_logprobs_NT,
            entropy_NT=self.entropy_NT,
        )
        _require(shape[:1], advantages_N=self.advantages_N, kept_N=self.kept_N)
        _require_bool(mask_NT=self.mask_NT, kept_N=self.kept_N)

    @property
    def counted_NT(self) -> Tensor:
        """Tokens that count in the loss and its denominator, `[N, T]` bool."""
        return counted_tokens(self.mask_NT, self.kept_N, self.engine_logprobs_NT)


LossFunction = Callable[[LossInputs, ObjectiveConfig], tuple[Tensor, dict[str, Tensor]]]
"""A function from inputs to a summed loss (divide by `aggregate.denominator`), and metrics summed over counted
tokens."""


@dataclass(frozen=True)
class Algorithm:
    """How rewards become advantages, and advantages become a loss.

    Attributes:
        advantages: From inputs with shaped rewards to advantages `[groups, K]`, 0 where not kept.
        loss: The loss, summed over a micro-batch.
        refresh: For algorithms whose advantages depend on the policy being updated, computed before each update: from
            rewards and log-ratios of the rationales (present policy against `kl.anchor`), both `[groups, K]`, and
            `kept`, to advantages `[groups, K]`.
    """

    advantages: Callable[[AdvantageInputs, ObjectiveConfig], Tensor]
    loss: LossFunction
    refresh: Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], Tensor] | None = None


def counted_tokens(mask_NT: Tensor, kept_N: Tensor | None, engine_logprobs_NT: Tensor | None) -> Tensor:
    """Return `mask_NT` without rationales that are not kept and without tokens whose engine log-prob is not finite."""
    if kept_N is not None:
        mask_NT = mask_NT & kept_N[:, None]
    if engine_logprobs_NT is not None:
        mask_NT = mask_NT & torch.isfinite(engine_logprobs_NT)
    return mask_NT


def _require(shape: torch.Size, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; expected {tuple(shape)}")


def _require_bool(**values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.dtype != torch.bool:
            raise ValueError(f"{name} is {value.dtype}; give torch.bool")
