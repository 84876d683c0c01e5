"""The reference model: where the policy started, for the KL penalty."""

import copy
from contextlib import nullcontext
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from grace_exp.policy.packing import MicroBatch
from grace_exp.policy.policy import Policy


class Reference(LightningModule):
    """Log-probs under the initial weights.

    With LoRA that is the policy with its adapters off, at no memory; otherwise a frozen copy. It stays in evaluation
    mode and out of checkpoints: it can be rebuilt from the backbone.
    """

    def __init__(self, policy: Policy) -> None:
        """Follow `policy`, which has had no update yet."""
        super().__init__()
        from peft import PeftModel

        # With adapters the policy's own weights serve, held in a tuple so that they are not registered a second time.
        self._shared = (policy,) if isinstance(policy.model, PeftModel) else ()
        self.copy = None if self._shared else copy.deepcopy(policy).requires_grad_(False)
        super().train(False)

    @torch.no_grad()
    def forward(self, batch: MicroBatch) -> Tensor:
        """Log-probs of the rationale tokens, flat [tokens]."""
        policy = self._shared[0] if self._shared else self.copy
        assert policy is not None
        model: Any = policy.model
        was_training = model.training
        model.eval()
        with model.disable_adapter() if self._shared else nullcontext():
            logprobs: Tensor = policy(batch)[1]
        model.train(was_training)
        return logprobs

    def train(self, mode: bool = True) -> Self:
        """Ignored: Lightning puts every module it holds into training mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Empty: nothing here is learned."""
        return {}
