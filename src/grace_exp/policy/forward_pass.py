"""Results of forwards: embeddings and log-probs of sequences, by micro-batch and in the sequences' order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grace_exp.policy.packing import MicroBatch, Region, TextSequence


@dataclass(frozen=True)
class Scored:
    """Embeddings and log-probs of a list of sequences, in their order.

    Attributes:
        embeddings: Embeddings by region, float32 [n, hidden].
        logprobs: Log-probs of the rationale tokens, float32 [n, longest], 0 where masked.
        mask: Which positions are rationale tokens, bool [n, longest].
    """

    embeddings: dict[Region, Tensor]
    logprobs: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ForwardPass:
    """A micro-batch and the results of its forward: embeddings by region [n, hidden], flat log-probs [tokens].

    `entropy` is flat [tokens]; None unless it was asked for.
    """

    batch: MicroBatch
    embeddings: dict[Region, Tensor]
    logprobs: Tensor
    entropy: Tensor | None = None


@torch.no_grad()
def collect(sequences: Sequence[TextSequence], passes: Iterable[ForwardPass]) -> Scored:
    """Return the results of the passes over `sequences` in the order of `sequences`, without gradients."""
    longest = max(len(sequence.completion_ids) for sequence in sequences)
    logprobs = mask = None
    pieces: dict[Region, dict[int, Tensor]] = {}
    for forward in passes:
        batch, device = forward.batch, forward.logprobs.device
        if logprobs is None or mask is None:
            logprobs = torch.zeros(len(sequences), longest, device=device)
            mask = torch.zeros(len(sequences), longest, dtype=torch.bool, device=device)
        rows = torch.tensor(batch.indices, dtype=torch.long, device=device)[batch.owners]
        logprobs[rows, batch.offsets] = forward.logprobs.detach()
        mask[rows, batch.offsets] = True
        for region, embeddings in forward.embeddings.items():
            pieces.setdefault(region, {}).update(zip(batch.indices, embeddings, strict=True))
    assert logprobs is not None and mask is not None
    ordered = {region: torch.stack([found[i] for i in range(len(sequences))]) for region, found in pieces.items()}
    return Scored(ordered, logprobs, mask)
