"""Short digests of models: two models with equal digests compute the same."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

_NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
_THREADS = 4  # hashlib releases the interpreter lock on large buffers


def fingerprint(model: nn.Module) -> str:
    """Return a digest of a model's weights and configuration, 32 hex digits; it takes about a second per gigabyte.

    It is computed from the tensors in memory, not from files, so it is right after loading, merging, casting or
    training.

    Args:
        model: A transformers model, with or without peft adapters.
    """
    digest = hashlib.blake2b(json.dumps(_settings(model), sort_keys=True, default=str).encode(), digest_size=16)
    seen: dict[tuple[int, int], str] = {}
    tensors = []
    for name, tensor in model.state_dict().items():
        # Tied weights have several names and are read once.
        if (first := seen.setdefault((tensor.data_ptr(), tensor.numel()), name)) == name:
            tensors.append(tensor)
        digest.update(f"{name} {first} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(_digest, tensors):
            digest.update(part)
    return digest.hexdigest()


def base_fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights without adapters, 32 hex digits; adding adapters does not change it."""
    digest = hashlib.blake2b(digest_size=16)
    tensors = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, part in zip(sorted(tensors), pool.map(_digest, (tensors[n] for n in sorted(tensors))), strict=True):
            digest.update(f"{name}\n".encode() + part)
    return digest.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()


def _settings(model: Any) -> dict[str, Any]:
    """Return what decides a forward besides the weights: the model's configuration, and the scale of its adapters."""
    configuration = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_COMPUTED_WITH}
    adapters = {
        name: sorted((adapter, scale) for adapter, scale in module.scaling.items() if adapter in module.active_adapters)
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return {"configuration": configuration, "adapters": adapters}
