"""Log-probs of given tokens without ever holding the logits of a batch."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def token_logprobs(hidden: Tensor, targets: Tensor, temperatures: Tensor, head: nn.Module, *, chunk: int) -> Tensor:
    """Log-probs of `targets` [tokens] given the hidden states before them [tokens, hidden], float32 nats.

    Logits exist for `chunk` positions at a time, in the backward pass too, where they are computed again: a vocabulary
    of 151k tokens costs chunk x 0.6 MB instead of tokens x 0.6 MB.

    Args:
        hidden: Final hidden states of the predicting positions.
        targets: Token ids.
        temperatures: Divides the logits, [tokens].
        head: The output head, hidden -> vocabulary.
        chunk: Positions at a time.
    """
    pieces = zip(hidden.split(chunk), targets.split(chunk), temperatures.split(chunk), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        results = [checkpoint(_chunk_logprobs, *piece, head, use_reentrant=False) for piece in pieces]
    else:
        results = [_chunk_logprobs(*piece, head) for piece in pieces]
    return torch.cat(results) if results else hidden.new_zeros(0, dtype=torch.float32)


def _chunk_logprobs(hidden: Tensor, targets: Tensor, temperatures: Tensor, head: nn.Module) -> Tensor:
    logits: Tensor = head(hidden).float() / temperatures[:, None]
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen - torch.logsumexp(logits, dim=-1)
