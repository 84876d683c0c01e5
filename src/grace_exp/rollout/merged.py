"""A copy of the weights to decode with: adapters folded in, and whole where processes share the weights out."""

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from grace_exp.rollout.vllm.weights import checkpoint_weights, plain_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class MergedCopy:
    """A plain model whose weights are base + adapter update, refreshed on demand.

    Decoding is many small steps, which adapters slow down by a fifth (benchmarks/rollout.py). The copy shares every
    tensor that has no adapter (embeddings, head, norms) with the original, which stays as it is: merging in place and
    back would leave rounding in the base weights.

    Apart, it shares nothing: for a model that is sharded later, of whose weights no process holds a whole one. All
    processes refresh it together, and it takes the memory of all weights on each.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", *, apart: bool = False) -> None:
        """Copy `model` with its adapters' present values.

        Args:
            model: With adapters, or, apart, without.
            apart: Share no tensor with it, and have the values of the first `refresh`.
        """
        self._source = model
        self._apart = apart
        base = plain_model(model)
        shared = {} if apart else {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        self.model: PreTrainedModel = copy.deepcopy(base, memo=shared)
        for name, layer in self._adapted():
            parent, _, child = name.rpartition(".")
            plain = copy.deepcopy(layer.base_layer).requires_grad_(False)  # its own weights from here on
            setattr(self.model.get_submodule(parent), child, plain)
        self.model.eval()
        if not apart:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the present values: of the adapters, or, apart, of all weights."""
        if self._apart:
            cast("nn.Module", self.model).to(self._source.device)
            for name, value in checkpoint_weights(self._source):
                self.model.get_parameter(name).copy_(value)
            return
        for name, layer in self._adapted():
            target, base_weight = self.model.get_parameter(f"{name}.weight"), layer.base_layer.weight
            if target.shape == base_weight.shape:
                target.copy_(base_weight)
            else:  # after `release`
                target.data = base_weight.detach().clone()
            for adapter in layer.active_adapters:
                target.add_(layer.get_delta_weight(adapter).to(target.dtype))

    @property
    def releases(self) -> bool:
        """Whether one process alone can give its memory back: a copy that stands apart is refreshed by all together."""
        return not self._apart

    def release(self) -> None:
        """Give back the memory of the merged weights until the next `refresh`."""
        for name, _ in self._adapted():
            target = self.model.get_parameter(f"{name}.weight")
            target.data = target.new_empty(0)

    def _adapted(self) -> list[tuple[str, Any]]:
        """Name and peft layer of every module with adapters."""
        base = plain_model(self._source)
        return [(name, module) for name, module in base.named_modules() if hasattr(module, "get_delta_weight")]
