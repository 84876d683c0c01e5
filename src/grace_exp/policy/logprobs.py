"""Log-probs of given tokens without ever holding the logits of a batch."""

from collections.abc import Callable

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
    return _chunked(_chunk_logprobs, hidden, targets, temperatures, head, chunk)[0]


def token_logprobs_and_entropy(
    hidden: Tensor, targets: Tensor, temperatures: Tensor, head: nn.Module, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and the entropy of the distribution that each target was drawn from.

    Returns:
        Log-probs and entropies of softmax(logits / temperature), both [tokens] float32 nats.
    """
    logprobs, entropy = _chunked(_chunk_logprobs_and_entropy, hidden, targets, temperatures, head, chunk)
    return logprobs, entropy


def _chunked(
    statistic: Callable[..., tuple[Tensor, ...]],
    hidden: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    head: nn.Module,
    chunk: int,
) -> list[Tensor]:
    # Splitting no tokens gives one empty chunk, so that there always is a result.
    pieces = zip(hidden.split(chunk), targets.split(chunk), temperatures.split(chunk), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        results = [checkpoint(statistic, *piece, head, use_reentrant=False) for piece in pieces]
    else:
        results = [statistic(*piece, head) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _chunk_logprobs(hidden: Tensor, targets: Tensor, temperatures: Tensor, head: nn.Module) -> tuple[Tensor]:
    logits: Tensor = head(hidden).float() / temperatures[:, None]
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return (chosen - torch.logsumexp(logits, dim=-1),)


def _chunk_logprobs_and_entropy(
    hidden: Tensor, targets: Tensor, temperatures: Tensor, head: nn.Module
) -> tuple[Tensor, Tensor]:
    logits: Tensor = head(hidden).float() / temperatures[:, None]
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    normaliser = torch.logsumexp(logits, dim=-1)
    mean_logit = (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
    return chosen - normaliser, normaliser - mean_logit
