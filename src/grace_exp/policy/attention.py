"""Attention of packed rows without a dense mask: FlexAttention behind a block mask.

A dense mask costs rows x width^2 bytes and more in each layer, and rules out the kernels that skip what is masked. A
block mask says of blocks of 128 x 128 whether they are needed at all. Everything else, decoding too, stays with SDPA.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sdpa_or_flex"
"""Of the implementation among transformers' attention functions."""


def use_flex_for_block_masks(model: "PreTrainedModel") -> None:
    """Let a model read block masks by FlexAttention, and everything else by SDPA as before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def block_mask(block: Tensor) -> BlockMask:
    """The mask of packed rows, as `MicroBatch.attention_mask` but by blocks.

    Args:
        block: What a token belongs to, [rows, width]: 0 the prompt, k the k-th rationale of the row, -1 padding.
    """
    rows, width = block.shape

    def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_key = block[row, key]
        return (query >= key) & ((of_key == 0) | (of_key == block[row, query]))

    compiled = block.device.type == "cuda"  # else the mask is made dense for a moment
    return create_block_mask(visible, rows, None, width, width, device=str(block.device), _compile=compiled)


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
    """Transformers' attention interface: [rows, heads, width, head] in, [rows, width, heads, head] out."""
    if not isinstance(attention_mask, BlockMask):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if dropout > 0:
        raise ValueError("FlexAttention has no dropout: set hardware.packing=false, or method.dropout=null")
    # Rotated queries and keys are float32 under autocast, which does not reach FlexAttention.
    query, key = query.to(value.dtype), key.to(value.dtype)
    ratio = query.shape[1] // key.shape[1]
    if ratio & (ratio - 1):  # its kernels share keys among a power of two of heads
        key, value = key.repeat_interleave(ratio, dim=1), value.repeat_interleave(ratio, dim=1)
    kernel = _compiled() if query.device.type == "cuda" else flex_attention
    output: Any = kernel(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
