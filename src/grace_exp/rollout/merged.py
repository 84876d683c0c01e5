"""Adapters folded into a copy of the weights, so that decoding pays nothing for them."""

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class MergedCopy:
    """A plain model whose weights are base + adapter update, refreshed on demand.

    Decoding is many small steps, which adapters slow down by a fifth (benchmarks/rollout.py). The copy shares every
    tensor that has no adapter (embeddings, head, norms) with the original, which stays as it is: merging in place and
    back would leave rounding in the base weights.
    """

    def __init__(self, model: "PeftModel") -> None:
        """Copy `model` with its adapters' present values."""
        self._source = model
        base: Any = model.get_base_model()
        shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        self.model: PreTrainedModel = copy.deepcopy(base, memo=shared)
        for name, layer in self._adapted():
            parent, _, child = name.rpartition(".")
            plain = copy.deepcopy(layer.base_layer).requires_grad_(False)  # its own weights from here on
            setattr(self.model.get_submodule(parent), child, plain)
        self.model.eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapters' present values."""
        for name, layer in self._adapted():
            target = self.model.get_parameter(f"{name}.weight")
            target.copy_(layer.base_layer.weight)
            for adapter in layer.active_adapters:
                target.add_(layer.get_delta_weight(adapter).to(target.dtype))

    def _adapted(self) -> list[tuple[str, Any]]:
        """Name and peft layer of every module with adapters."""
        base = self._source.get_base_model()
        return [(name, module) for name, module in base.named_modules() if hasattr(module, "get_delta_weight")]
