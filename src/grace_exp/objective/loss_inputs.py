"""What advantages and policy losses are computed from, and what an algorithm is.

The capitals behind a tensor's name are its dimensions; CONTRIBUTING.md lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


@dataclass(frozen=True, eq=False)
class AdvantageInputs:
    """All groups of a step, over all processes: means and deviations over a share of them would be others.

    Attributes:
        rewards_GK: `[groups, K]`.
        kept_GK: False for rationales that take no part, in advantages, means and deviations, `[groups, K]` bool.
        lengths_GK: Rationale lengths, `[groups, K]` tokens.
        max_tokens: The longest a rationale may be.
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
        """Check what would otherwise broadcast."""
        shape = self.rewards_GK.shape
        _require(shape, kept_GK=self.kept_GK, lengths_GK=self.lengths_GK, reference_kl_GK=self.reference_kl_GK)
        _require(shape[:1], baseline_G=self.baseline_G)
        _require_bool(kept_GK=self.kept_GK)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch of rationales.

    Attributes:
        logprobs_NT: Of the sampled tokens under the policy being trained, `[N, T]` nats; carries the gradient.
        old_logprobs_NT: Under the policy the update started from, `[N, T]` nats.
        advantages_N: One per rationale, `[N]`.
        mask_NT: True at the rationale's tokens, `[N, T]` bool. Where it is False the others may hold anything.
        reference_logprobs_NT: Under the reference model, `[N, T]` nats, or None where there is none.
        engine_logprobs_NT: As the engine that wrote the tokens reported them, `[N, T]` nats; a token whose value is nan
            or infinite is left out. None: every token of the mask counts.
        entropy_NT: Of the policy's distribution at each token, `[N, T]` nats; carries the gradient. None without bonus.
        kept_N: False for rationales that are left out, `[N]` bool; None: none is.

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
        """Check what would otherwise broadcast, or index, into a wrong loss."""
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
        """Tokens that the loss and its denominator are made of, `[N, T]` bool."""
        return counted_tokens(self.mask_NT, self.kept_N, self.engine_logprobs_NT)


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


def counted_tokens(mask_NT: Tensor, kept_N: Tensor | None, engine_logprobs_NT: Tensor | None) -> Tensor:
    """`mask_NT` without rationales that are not kept and without tokens whose engine log-prob is not finite."""
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
