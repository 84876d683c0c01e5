"""FSDP2 in Lightning.

Checkpoints have the format of all other strategies: one file of whole tensors, for any number of processes.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from grace_exp.policy.sharding import part_of, whole


class ShardedStrategy(ModelParallelStrategy):
    """A strategy for the weights that `StepModule.configure_model` shards."""

    def __init__(self, processes: int, timeout: timedelta) -> None:
        """Make the strategy for `processes` on all nodes; `timeout` is that of one exchange."""
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning calls `load_optimizer_state_dict` with the optimizer's state."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole trained weights on the first process, and {} on the others, which must call it too."""
        assert self.lightning_module is not None
        trained = ((name, weight) for name, weight in self.lightning_module.named_parameters() if weight.requires_grad)
        return self._gathered(trained)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return whole moments by the number of their weight, on the first process, as other strategies do."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return state | {"state": {place: self._gathered(found.items()) for place, found in state["state"].items()}}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the mapped file; each process reads its parts of it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of the weights."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the moments."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                place: {
                    name: part_of(value, weights[place]) if _is_of(value, weights[place]) else value
                    for name, value in found.items()
                }
                for place, found in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": parts})

    def _gathered(self, named: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in named:
            together = whole(value.detach()) if isinstance(value, Tensor) else value
            if self.is_global_zero:
                found[name] = together.cpu() if isinstance(together, Tensor) else together
        return found


def _is_of(value: Any, weight: torch.Tensor) -> bool:
    """Whether the value has an entry for each of the weight's elements; Adam's count of steps has not."""
    return isinstance(value, Tensor) and value.shape == weight.shape
