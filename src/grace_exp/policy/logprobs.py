"""Log-probs of given tokens without ever holding the logits of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grace_exp.policy.output_head import Float32Head, OneDnnHead


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
    if torch.is_grad_enabled() and hidden.requires_grad and _is_fixed(head, hidden):
        found: Tensor = _FixedHead.apply(hidden, targets, temperatures, head, chunk)  # type: ignore[no-untyped-call]
        return found
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


def _is_fixed(head: nn.Module, hidden: Tensor) -> bool:
    """Whether a head is a plain float32 product, on this process, that does not train."""
    if type(head) not in (Float32Head, OneDnnHead) or head.bias is not None or head.weight.requires_grad:
        return False
    autocast = torch.is_autocast_enabled(hidden.device.type)
    return hidden.dtype == head.weight.dtype == torch.float32 and not autocast and not head._forward_hooks


class _FixedHead(torch.autograd.Function):
    """Log-probs by a head that does not train.

    The log-prob of a token depends on its own hidden state only, so that its gradient is known as soon as the logits
    are: (weights of the target - their mean under the distribution) / temperature. It is kept instead of the state, and
    the backward pass needs no logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, temperatures: Tensor, head: Float32Head, chunk: int
    ) -> Tensor:
        weight, logprobs, directions = head.weight, [], []
        for states, chosen, temperature in zip(
            hidden.split(chunk), targets.split(chunk), temperatures[:, None].split(chunk), strict=True
        ):
            logits: Tensor = head(states)
            if not bool((temperature == 1).all()):
                logits.div_(temperature)
            largest = logits.amax(dim=-1, keepdim=True)
            of_target = logits.gather(1, chosen[:, None])
            exponentials = logits.sub_(largest).exp_()
            total = exponentials.sum(dim=-1, keepdim=True)
            logprobs.append((of_target - largest - total.log()).squeeze(1))
            mean = head.product(exponentials, weight.t())
            directions.append((weight[chosen] - mean.div_(total)).div_(temperature))
            del logits, exponentials  # before the next chunk's are there
        ctx.save_for_backward(torch.cat(directions))
        return torch.cat(logprobs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (directions,) = ctx.saved_tensors
        return gradients[0][:, None] * directions, None, None, None, None
