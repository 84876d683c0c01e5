"""Attention on CPUs in which query heads share keys and values without copies.

In grouped-query attention several query heads read the same keys. With a mask, transformers repeats keys and values
for each query head, because CUDA's kernels need that. PyTorch's CPU kernel reads shared keys with any mask. The copies
took a fifth of the time of decoding, where every token would copy the whole cache.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sdpa_grouped"
"""Name of the implementation among transformers' attention functions."""


def use_grouped_attention(model: "PreTrainedModel") -> None:
    """Let a model that uses SDPA attend without repeated keys on CPUs; on other devices nothing changes.

    A model with another attention is not changed.

    Args:
        model: The language model below any adapters' wrapper.
    """
    if model.config._attn_implementation != "sdpa":
        return
    register_grouped_attention()
    model.set_attn_implementation(NAME)


def register_grouped_attention() -> None:
    """Register the implementation with transformers in this process."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def attention_name(model: "PreTrainedModel") -> str:
    """Return the name of a model's attention; shared and repeated keys count as one, as their results are equal."""
    name = str(model.config._attn_implementation)
    return "sdpa" if name == NAME else name


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention by transformers' interface: [rows, heads, width, head] to [rows, width, heads, head]."""
    wanted = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = bool(wanted) and attention_mask is None and query.shape[2] > 1
    plain = kwargs.get("position_bias") is None and kwargs.get("cache") is None
    if query.device.type != "cpu" or not plain or (causal and query.shape[2] != key.shape[2]):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
        )
    output = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None
