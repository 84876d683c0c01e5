"""The reference model: the initial policy, for the KL penalty and for rewards from a frozen encoder."""

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

    With LoRA it is the policy without its adapters, and takes no memory; otherwise it is a frozen copy. It stays in
    evaluation mode, and checkpoints do not hold it, because it can be rebuilt from the backbone.
    """

    def __init__(self, policy: Policy) -> None:
        """Create the reference of `policy`, which has had no update yet."""
        super().__init__()
        from peft import PeftModel

        # With adapters it uses the policy's own weights; a tuple keeps them from being registered a second time.
        self._shared = (policy,) if isinstance(policy.model, PeftModel) else ()
        self.copy = None if self._shared else copy.deepcopy(policy).requires_grad_(False)
        super().train(False)

    @torch.no_grad()
    def forward(self, batch: MicroBatch) -> Tensor:
        """Return the log-probs of the rationale tokens, flat [tokens]."""
        with self._start() as policy:
            model = policy.model
            was_training = model.training
            model.eval()
            logprobs_P: Tensor = policy(batch)[1]
            model.train(was_training)
        return logprobs_P

    def score(self, sequences: Sequence[TextSequence], regions: Sequence[Region] | None = None) -> Scored:
        """Return scores as `Policy.score` does."""
        with self._start() as policy:
            return policy.score(sequences, regions)

    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """Return embeddings as `Policy.embed` does."""
        with self._start() as policy:
            return policy.embed(sequences, regions)

    def shard(self, mesh: "DeviceMesh") -> None:
        """Shard the copy, if there is one: this process keeps its part."""
        if self.copy is not None:
            self.copy.shard(mesh)

    @contextmanager
    def _start(self) -> Iterator[Policy]:
        """Yield a policy with the initial weights."""
        policy = self._shared[0] if self._shared else self.copy
        assert policy is not None
        model: Any = policy.model
        with model.disable_adapter() if self._shared else nullcontext():
            yield policy

    def train(self, mode: bool = True) -> Self:
        """Ignore the call: Lightning puts every module that it holds into training mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return an empty dict: the reference is not trained."""
        return {}
