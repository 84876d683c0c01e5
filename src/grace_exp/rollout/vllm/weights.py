"""A policy's weights for an engine: under their checkpoint names, with adapters merged in or separate."""

import copy
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grace_exp.errors import GraceError
from grace_exp.policy.sharding import is_sharded, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BASE_LAYER = ".base_layer."


@torch.no_grad()
def checkpoint_weights(
    model: nn.Module, *, adapters: bool = True, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every weight; tied weights come once.

    Adapters are merged into one weight at a time, so that no second copy of the model is needed. If the model is
    sharded, all processes must iterate over all weights; each weight is gathered on every process.

    Args:
        model: With or without peft's adapters.
        adapters: Whether the adapters' updates are merged in; otherwise they are left out.
        dtype: Precision of the values; None: unchanged.
    """
    base = plain_model(model)
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        value = whole(parameter.detach())
        module_name, adapted, rest = name.rpartition(_BASE_LAYER)
        if adapted and adapters and rest == "weight":
            layer: Any = base.get_submodule(module_name)
            for adapter in layer.active_adapters:
                value = value + whole(layer.get_delta_weight(adapter)).to(value.dtype)
        yield name.replace(_BASE_LAYER, "."), value if dtype is None else value.to(dtype)


def weight_shapes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every weight of `checkpoint_weights`, in its order, without computing any."""
    for name, parameter in plain_model(model).named_parameters():
        if ".lora_" not in name:
            yield name.replace(_BASE_LAYER, "."), tuple(parameter.shape)


def take_part(model: nn.Module) -> None:
    """Take part in gathering the weights for another process's `checkpoint_weights`, on a process that needs none."""
    if is_sharded(model):
        for _ in checkpoint_weights(model):
            pass


def save_adapter(model: Any, folder: Path | None) -> None:
    """Write the adapters as peft does. If the model is sharded, all processes call it, those without a folder too.

    Args:
        model: With adapters.
        folder: Where the adapters are written; None: not written.
    """
    state = {name: whole(value.detach()) for name, value in model.named_parameters() if ".lora_" in name}
    if folder is not None:
        model.save_pretrained(str(folder), state_dict=state)


def plain_model(model: nn.Module) -> "PreTrainedModel":
    """Return the language model below peft's wrapper."""
    from peft import PeftModel

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base  # type: ignore[no-any-return]


def write_model_folder(model: nn.Module, folder: Path, *, weights: bool, dtype: torch.dtype) -> None:
    """Write what an engine starts from: the model's configuration, and its weights without adapters if asked for."""
    base = plain_model(model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    if weights:
        write_weights(base, folder / "model.safetensors", adapters=False, dtype=dtype)


def write_weights(model: nn.Module, file: Path, *, adapters: bool, dtype: torch.dtype) -> None:
    """Write `checkpoint_weights` to a safetensors file.

    Raises:
        GraceError: The disk is full, or the folder is not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = checkpoint_weights(model, adapters=adapters, dtype=dtype)
    try:
        save_file({name: value.cpu().contiguous() for name, value in weights}, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise GraceError(f"the engine's weights cannot be written to {file}: {error}") from error


def load_into(model: Any, weights: Iterator[tuple[str, Tensor]], expected: Collection[str]) -> None:
    """Copy weights into vLLM's model, in the process of that model.

    Args:
        model: vLLM's model.
        weights: Names and values in checkpoint format.
        expected: Names of the model's parameters. They must be listed before vLLM's layer-by-layer reload, during which
            tied modules have separate parameters.

    Raises:
        RuntimeError: A parameter got no value.
    """
    loaded = set(model.load_weights(weights))
    if missing := sorted(set(expected) - loaded):
        raise RuntimeError(f"the policy has no value for {len(missing)} of the engine's weights: {missing[:3]}")
