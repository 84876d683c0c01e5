"""Attention of packed rows without a dense mask: FlexAttention with a block mask.

A dense mask takes rows x width^2 bytes or more in each layer, and excludes kernels that skip masked positions. A block
mask says for each block of 128 x 128 positions whether it is needed at all. All other attention, also in decoding,
stays with SDPA.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sdpa_or_flex"
"""Name of the implementation among transformers' attention functions."""


def use_flex_for_block_masks(model: "PreTrainedModel") -> None:
    """Let a model use FlexAttention for block masks, and SDPA for everything else."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def block_mask(block_BL: Tensor) -> BlockMask:
    """Return the mask of packed rows, like `MicroBatch.attention_mask` but by blocks.

    Args:
        block_BL: What each token belongs to, [rows, width]: 0 the prompt, k the k-th rationale of the row, -1 padding.
    """
    rows, width = block_BL.shape

    def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_key = block_BL[row, key]
        return (query >= key) & ((of_key == 0) | (of_key == block_BL[row, query]))

    compiled = block_BL.device.type == "cuda"  # uncompiled code builds a dense mask first
    return create_block_mask(visible, rows, None, width, width, device=str(block_BL.device), _compile=compiled)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: "BlockMask | Tensor | None",
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention by transformers' interface: [rows, heads, width, head] to [rows, width, heads, head]."""
    if not isinstance(attention_mask, BlockMask):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if dropout > 0:
        raise ValueError("FlexAttention has no dropout: set hardware.packing=false, or method.dropout=null")
    # Under autocast, rotated queries and keys are float32; autocast does not apply to FlexAttention.
    query, key = query.to(value.dtype), key.to(value.dtype)
    ratio = query.shape[1] // key.shape[1]
    if ratio & (ratio - 1):  # its kernels share keys only among a power of two of heads
        key, value = key.repeat_interleave(ratio, dim=1), value.repeat_interleave(ratio, dim=1)
    kernel = _compiled() if query.device.type == "cuda" else flex_attention
    output: Any = kernel(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
