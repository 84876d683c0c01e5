"""FSDP2 in Lightning.

Checkpoints are those of every other strategy: one file of whole tensors, for any number of processes.
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
    """Processes that share out the weights that `StepModule.configure_model` shards."""

    def __init__(self, processes: int, timeout: timedelta) -> None:
        """For so many processes on all nodes; `timeout` is that of one exchange."""
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that train, whole, on the first process; {} on the others, which take part."""
        assert self.lightning_module is not None
        trained = ((name, weight) for name, weight in self.lightning_module.named_parameters() if weight.requires_grad)
        return self._gathered(trained)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As other strategies': whole moments by the place of their weight, on the first process."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return state | {"state": {place: self._gathered(found.items()) for place, found in state["state"].items()}}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The mapped file, of which each process reads its parts."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the moments."""
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
    """Whether it is a value for each of the weight's elements; Adam's count of steps is not."""
    return isinstance(value, Tensor) and value.shape == weight.shape
