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
        logprobs_NT: Log-probs of the rationale tokens, float32 [n, longest], 0 where masked.
        mask_NT: Which positions are rationale tokens, bool [n, longest].
    """

    embeddings: dict[Region, Tensor]
    logprobs_NT: Tensor
    mask_NT: Tensor


@dataclass(frozen=True)
class ForwardPass:
    """A micro-batch and the results of its forward.

    Attributes:
        batch: The micro-batch with its sequences.
        embeddings: Embeddings by region, float32 [n, hidden].
        logprobs_P: Log-probs of the rationale tokens, flat, [tokens] nats.
        entropy_P: Entropies of the distributions of these tokens, [tokens] nats; None unless asked for.
    """

    batch: MicroBatch
    embeddings: dict[Region, Tensor]
    logprobs_P: Tensor
    entropy_P: Tensor | None = None


@torch.no_grad()
def collect(sequences: Sequence[TextSequence], passes: Iterable[ForwardPass]) -> Scored:
    """Return the results of the passes over `sequences` in the order of `sequences`, without gradients."""
    longest = max(len(sequence.completion_ids) for sequence in sequences)
    logprobs_NT = mask_NT = None
    pieces: dict[Region, dict[int, Tensor]] = {}
    for forward in passes:
        batch, device = forward.batch, forward.logprobs_P.device
        if logprobs_NT is None or mask_NT is None:
            logprobs_NT = torch.zeros(len(sequences), longest, device=device)
            mask_NT = torch.zeros(len(sequences), longest, dtype=torch.bool, device=device)
        rows_P = torch.tensor(batch.indices, dtype=torch.long, device=device)[batch.owners_P]
        logprobs_NT[rows_P, batch.offsets_P] = forward.logprobs_P.detach()
        mask_NT[rows_P, batch.offsets_P] = True
        for region, embeddings_NH in forward.embeddings.items():
            pieces.setdefault(region, {}).update(zip(batch.indices, embeddings_NH, strict=True))
    assert logprobs_NT is not None and mask_NT is not None
    ordered = {region: torch.stack([found[i] for i in range(len(sequences))]) for region, found in pieces.items()}
    return Scored(ordered, logprobs_NT, mask_NT)
