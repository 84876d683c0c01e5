"""Pool hidden states into one vector per text."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.policy.packing import MicroBatch, Region


def pool(hidden_BLH: Tensor, batch: MicroBatch, *, region: Region, method: Literal["mean", "last", "max"]) -> Tensor:
    """Pool hidden states [rows, width, hidden] into float32 embeddings [n, hidden].

    `mean` is the paper's (eq. 11), summed in float32 in every precision of the model; `last` is the region's last
    token.

    Raises:
        ValueError: A sequence has no token in the region.
    """
    if not batch.n:
        return hidden_BLH[batch.rows_N, 0].float()  # [0, hidden], connected to the graph
    member_NL = batch.membership(region)
    counts_N = member_NL.sum(dim=1)
    if not bool((counts_N > 0).all()):
        raise ValueError(f"pooling region {region!r} is empty for a sequence: it has no rationale")
    if method == "last":
        positions_L = torch.arange(member_NL.shape[1], device=member_NL.device)
        last_N = torch.where(member_NL, positions_L, -1).amax(dim=1)
        return hidden_BLH[batch.rows_N, last_N].float()
    if method == "max":
        return torch.stack(
            [
                hidden_BLH[row][mask].float().amax(dim=0)
                for row, mask in zip(batch.rows_N.tolist(), member_NL, strict=True)
            ]
        )
    # One matrix product a row: a prompt's hidden states are read once for all sequences that share them.
    weights_BSL = hidden_BLH.new_zeros(
        hidden_BLH.shape[0], int(batch.slots_N.max()), hidden_BLH.shape[1], dtype=torch.float32
    )
    weights_BSL[batch.rows_N, batch.slots_N - 1] = member_NL / counts_N[:, None]
    with torch.autocast(hidden_BLH.device.type, enabled=False):
        means_BSH = weights_BSL @ hidden_BLH.float()
    return means_BSH[batch.rows_N, batch.slots_N - 1]
