"""From hidden states to one vector a text."""

from typing import Literal

import torch
from torch import Tensor

from grace_exp.policy.packing import MicroBatch, Region


def pool(hidden: Tensor, batch: MicroBatch, *, region: Region, method: Literal["mean", "last", "max"]) -> Tensor:
    """Pool hidden states [rows, width, hidden] into float32 embeddings [n, hidden].

    `mean` is the paper's (eq. 11), summed in float32 whatever the model computes in; `last` is the region's last token.

    Raises:
        ValueError: A sequence has no token in the region.
    """
    if not batch.n:
        return hidden[batch.rows, 0].float()  # [0, hidden], with a way back
    member = batch.membership(region)
    counts = member.sum(dim=1)
    if not bool((counts > 0).all()):
        raise ValueError(f"pooling region {region!r} is empty for a sequence: it has no rationale")
    if method == "last":
        positions = torch.arange(member.shape[1], device=member.device)
        last = torch.where(member, positions, -1).amax(dim=1)
        return hidden[batch.rows, last].float()
    if method == "max":
        return torch.stack(
            [hidden[row][mask].float().amax(dim=0) for row, mask in zip(batch.rows.tolist(), member, strict=True)]
        )
    # One matrix product a row: a prompt's hidden states are read once however many sequences share them.
    weights = hidden.new_zeros(hidden.shape[0], int(batch.slots.max()), hidden.shape[1], dtype=torch.float32)
    weights[batch.rows, batch.slots - 1] = member / counts[:, None]
    with torch.autocast(hidden.device.type, enabled=False):
        means = weights @ hidden.float()
    return means[batch.rows, batch.slots - 1]
