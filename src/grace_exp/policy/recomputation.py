"""Which results layers compute again in the backward pass instead of storing them."""

from functools import partial
from typing import Any, Literal

import torch


def checkpointing_arguments(kind: Literal["full", "selective"]) -> dict[str, Any]:
    """Return the arguments of transformers' `gradient_checkpointing_enable`."""
    arguments: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _costly())
    return arguments


def _costly() -> list[Any]:
    """Return the operations whose results are stored: matrix products and attention."""
    aten = torch.ops.aten
    return [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        torch.ops.mkldnn._linear_pointwise.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]
