"""What advantages and policy losses are computed from, and what an algorithm is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


@dataclass(frozen=True, eq=False)
class AdvantageInputs:
    """All groups of a step, over all processes: means and deviations over a share of them would be others.

    Attributes:
        rewards: `[groups, K]`.
        kept: False for rationales that take no part, in advantages, means and deviations, `[groups, K]` bool.
        lengths: Rationale lengths, `[groups, K]` tokens.
        max_tokens: The longest a rationale may be.
        baseline: Reward of the greedy rationale, `[groups]`; for `remax`.
        reference_kl: Estimated KL to the reference, summed over the rationale, `[groups, K]` nats; for a penalty in the
            reward.

    Raises:
        ValueError: Shapes do not agree, or `kept` is not bool.
    """

    rewards: Tensor
    kept: Tensor
    lengths: Tensor
    max_tokens: int
    baseline: Tensor | None = None
    reference_kl: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what would otherwise broadcast."""
        shape = self.rewards.shape
        _require(shape, kept=self.kept, lengths=self.lengths, reference_kl=self.reference_kl)
        _require(shape[:1], baseline=self.baseline)
        _require_bool(kept=self.kept)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch of rationales.

    Attributes:
        logprobs: Of the sampled tokens under the policy being trained, `[n, T]` nats; carries the gradient.
        old_logprobs: Under the policy the update started from, `[n, T]` nats.
        advantages: One per rationale, `[n]`.
        mask: True at the rationale's tokens, `[n, T]` bool. Where it is False the others may hold anything.
        reference_logprobs: Under the reference model, `[n, T]` nats, or None where there is none.
        engine_logprobs: As the engine that wrote the tokens reported them, `[n, T]` nats; a token whose value is nan or
            infinite is left out. None: every token of the mask counts.
        entropy: Of the policy's distribution at each token, `[n, T]` nats; carries the gradient. None without bonus.
        kept: False for rationales that are left out, `[n]` bool; None: none is.

    Raises:
        ValueError: Shapes do not agree, or `mask` or `kept` is not bool.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    reference_logprobs: Tensor | None = None
    engine_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    kept: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what would otherwise broadcast, or index, into a wrong loss."""
        shape = self.logprobs.shape
        _require(
            shape,
            old_logprobs=self.old_logprobs,
            mask=self.mask,
            reference_logprobs=self.reference_logprobs,
            engine_logprobs=self.engine_logprobs,
            entropy=self.entropy,
        )
        _require(shape[:1], advantages=self.advantages, kept=self.kept)
        _require_bool(mask=self.mask, kept=self.kept)

    @property
    def counted(self) -> Tensor:
        """Tokens that the loss and its denominator are made of, `[n, T]` bool."""
        return counted_tokens(self.mask, self.kept, self.engine_logprobs)


LossFunction = Callable[[LossInputs, ObjectiveConfig], tuple[Tensor, dict[str, Tensor]]]
"""From inputs to a summed loss (divide by `aggregate.denominator`), and metrics summed over the counted tokens."""


@dataclass(frozen=True)
class Algorithm:
    """How rewards become advantages, and advantages a loss.

    Attributes:
        advantages: From inputs whose rewards are shaped already to `[groups, K]`, 0 where not kept.
        loss: Summed over a micro-batch.
        refresh: For algorithms whose advantages depend on the policy being updated: from rewards and log-ratios of the
            rationales (present policy against `kl.anchor`), both `[groups, K]`, and `kept` to `[groups, K]`, computed
            before each update.
    """

    advantages: Callable[[AdvantageInputs, ObjectiveConfig], Tensor]
    loss: LossFunction
    refresh: Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], Tensor] | None = None


def counted_tokens(mask: Tensor, kept: Tensor | None, engine_logprobs: Tensor | None) -> Tensor:
    """`mask` `[n, T]` without rationales that are not kept and without tokens whose engine log-prob is not finite."""
    if kept is not None:
        mask = mask & kept[:, None]
    if engine_logprobs is not None:
        mask = mask & torch.isfinite(engine_logprobs)
    return mask


def _require(shape: torch.Size, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; expected {tuple(shape)}")


def _require_bool(**values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.dtype != torch.bool:
            raise ValueError(f"{name} is {value.dtype}; give torch.bool")
