"""Adapters folded into a copy of the weights, so that decoding pays nothing for them."""

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class MergedCopy:
    """A plain model whose weights are base + adapter update, refreshed on demand.

    Decoding is many small steps, which adapters slow down by a fifth (benchmarks/rollout.py). The copy shares every tensor that has no adapter
    (embeddings, head, norms) with the original, which stays as it is: merging in place and back would leave rounding in the base weights.

    Args:
        model: The peft model to follow.
    """

    def __init__(self, model: "PeftModel") -> None:
        self._source = model
        base = model.get_base_model()
        adapted = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
        shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        self.model: PreTrainedModel = copy.deepcopy(base, memo=shared)  # type: ignore[arg-type]
        for name in adapted:
            parent, _, child = name.rpartition(".")
            plain = copy.deepcopy(self.model.get_submodule(name).base_layer)  # its own weights from here on
            plain.requires_grad_(False)
            setattr(self.model.get_submodule(parent), child, plain)
        self.model.eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapters' present values."""
        base = self._source.get_base_model()
        for name, module in base.named_modules():
            if hasattr(module, "get_delta_weight"):
                target = self.model.get_submodule(name).weight
                target.copy_(module.base_layer.weight)
                for adapter in module.active_adapters:
                    target.add_(module.get_delta_weight(adapter).to(target.dtype))
