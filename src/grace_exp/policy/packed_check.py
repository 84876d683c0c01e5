"""Check packed rows computed by FlexAttention against the plain rows that they replace."""

from collections.abc import Callable

import torch
from torch import Tensor

from grace_exp.errors import ConfigError
from grace_exp.policy.attention import block_mask
from grace_exp.policy.packing import MicroBatch

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest accepted difference, as a share of the hidden states' norm, by precision."""

Read = Callable[..., Tensor]
"""A function from input_ids, position_ids and attention_mask to hidden states [rows, width, hidden]."""


def check_packed_row(batch: MicroBatch, read: Read, *, dtype: torch.dtype) -> None:
    """Compare one packed row with the plain causal rows of its rationales.

    Args:
        batch: Packed rows.
        read: The decoder.
        dtype: Precision of matrix products.

    Raises:
        ConfigError: They differ by more than rounding.
    """
    packed_rows, counts = batch.rows_N.unique(return_counts=True)
    row = int(packed_rows[counts.argmax()])
    block_1L = batch.block_BL[row : row + 1]
    ids_1L, positions_1L = batch.input_ids_BL[row : row + 1], batch.position_ids_BL[row : row + 1]
    packed_LH = read(input_ids=ids_1L, position_ids=positions_1L, attention_mask=block_mask(block_1L))[0]
    worst = 0.0
    for slot in range(1, int(block_1L.max()) + 1):
        chosen_L = ((block_1L == 0) | (block_1L == slot))[0]
        plain_TH = read(input_ids=ids_1L[:, chosen_L], position_ids=positions_1L[:, chosen_L], attention_mask=None)[0]
        worst = max(worst, float((packed_LH[chosen_L] - plain_TH).norm() / plain_TH.norm()))
    if not worst <= TOLERANCE[dtype]:
        raise ConfigError(
            f"hardware.packed_attention=flex gives other hidden states than plain rows here: {worst:.2g} of their norm "
            f"(rounding in {dtype} explains {TOLERANCE[dtype]:g}). Set hardware.packing=false, or "
            "hardware.packed_attention=mask"
        )
