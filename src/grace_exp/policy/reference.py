"""The reference model: where the policy started, for the KL penalty and for rewards from a frozen encoder."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from grace_exp.policy.forward_pass import Scored
from grace_exp.policy.packing import MicroBatch, Region, TextSequence
from grace_exp.policy.policy import Policy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Reference(LightningModule):
    """Log-probs and embeddings under the initial weights.

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
        with self._start() as policy:
            model = policy.model
            was_training = model.training
            model.eval()
            logprobs: Tensor = policy(batch)[1]
            model.train(was_training)
        return logprobs

    def score(self, sequences: Sequence[TextSequence], regions: Sequence[Region] | None = None) -> Scored:
        """As `Policy.score`."""
        with self._start() as policy:
            return policy.score(sequences, regions)

    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """As `Policy.embed`."""
        with self._start() as policy:
            return policy.embed(sequences, regions)

    def shard(self, mesh: "DeviceMesh") -> None:
        """Leave this process its part of the copy, if there is one."""
        if self.copy is not None:
            self.copy.shard(mesh)

    @contextmanager
    def _start(self) -> Iterator[Policy]:
        """A policy with the initial weights."""
        policy = self._shared[0] if self._shared else self.copy
        assert policy is not None
        model: Any = policy.model
        with model.disable_adapter() if self._shared else nullcontext():
            yield policy

    def train(self, mode: bool = True) -> Self:
        """Ignored: Lightning puts every module it holds into training mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Empty: nothing here is learned."""
        return {}
