"""What a policy loss is computed from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch of rationales.

    Attributes:
        logprobs: Of the sampled tokens under the policy being trained, `[n, T]` nats; carries the gradient.
        old_logprobs: Under the policy the update started from, `[n, T]` nats.
        advantages: One per rationale, `[n]`.
        mask: True at the rationale's tokens, `[n, T]` bool. Where it is False the others may hold anything.
        reference_logprobs: Under the reference model, `[n, T]` nats, or None where there is none.

    Raises:
        ValueError: Shapes do not agree, or the mask is not bool.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    reference_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what would otherwise broadcast, or index, into a wrong loss."""
        shape = self.logprobs.shape
        found = {"old_logprobs": self.old_logprobs, "mask": self.mask, "reference_logprobs": self.reference_logprobs}
        for name, values in found.items():
            if values is not None and values.shape != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; logprobs have {tuple(shape)}")
        if self.advantages.shape != shape[:1]:
            raise ValueError(
                f"advantages have shape {tuple(self.advantages.shape)}; logprobs ask for {tuple(shape[:1])}"
            )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"mask is {self.mask.dtype}; give torch.bool")


LossFunction = Callable[[LossInputs, ObjectiveConfig], tuple[Tensor, dict[str, Tensor]]]
"""From inputs to a loss summed over tokens, and metrics summed over tokens."""
