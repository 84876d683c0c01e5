"""A copy of the weights for decoding: adapters are merged, and sharded weights are gathered."""

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

    Decoding is many small steps, and adapters slow it down by a fifth (benchmarks/rollout.py). The copy shares every
    tensor without an adapter (embeddings, head, norms) with the original. The original does not change, because merging
    in place and back would leave rounding errors in the base weights.

    With `apart` the copy shares no tensor. This is for a model that is sharded later, so that no process holds all of
    its weights. All processes must refresh the copy together, and each holds a whole one.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", *, apart: bool = False) -> None:
        """Copy `model` with its adapters' present values.

        Args:
            model: A model with adapters; with `apart` also one without.
            apart: Share no tensor with the model; the first `refresh` sets the values.
        """
        self._source = model
        self._apart = apart
        base = plain_model(model)
        shared = {} if apart else {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        self.model: PreTrainedModel = copy.deepcopy(base, memo=shared)
        for name, layer in self._adapted():
            parent, _, child = name.rpartition(".")
            plain = copy.deepcopy(layer.base_layer).requires_grad_(False)  # a separate weight
            setattr(self.model.get_submodule(parent), child, plain)
        self.model.eval()
        if not apart:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the present values of the adapters; with `apart` those of all weights."""
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
        """Whether a single process can free the copy's memory; with `apart` all processes must refresh it together."""
        return not self._apart

    def release(self) -> None:
        """Free the memory of the merged weights until the next `refresh`."""
        for name, _ in self._adapted():
            target = self.model.get_parameter(f"{name}.weight")
            target.data = target.new_empty(0)

    def _adapted(self) -> list[tuple[str, Any]]:
        """Return the name and peft layer of every module with adapters."""
        base = plain_model(self._source)
        return [(name, module) for name, module in base.named_modules() if hasattr(module, "get_delta_weight")]
