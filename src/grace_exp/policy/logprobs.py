"""Log-probs of given tokens, without the logits of a whole batch in memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grace_exp.policy.output_head import Float32Head, OneDnnHead


def token_logprobs(
    hidden_PH: Tensor, targets_P: Tensor, temperatures_P: Tensor, head: nn.Module, *, chunk: int
) -> Tensor:
    """Return the log-probs of `targets_P` given the hidden states before them, [tokens] float32 nats.

    Logits exist for `chunk` positions at a time; the backward pass computes them again in the same way. A vocabulary
    of 151k tokens costs chunk x 0.6 MB instead of tokens x 0.6 MB.

    Args:
        hidden_PH: Final hidden states of the predicting positions.
        targets_P: Token ids.
        temperatures_P: Temperatures that divide the logits, [tokens].
        head: The output head, hidden -> vocabulary.
        chunk: Number of positions at a time.
    """
    if torch.is_grad_enabled() and hidden_PH.requires_grad and _is_fixed(head, hidden_PH):
        found: Tensor = _FixedHead.apply(hidden_PH, targets_P, temperatures_P, head, chunk)  # type: ignore[no-untyped-call]
        return found
    return _chunked(_chunk_logprobs, hidden_PH, targets_P, temperatures_P, head, chunk)[0]


def token_logprobs_and_entropy(
    hidden_PH: Tensor, targets_P: Tensor, temperatures_P: Tensor, head: nn.Module, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the same log-probs, and the entropy of the distribution that each target was drawn from.

    Returns:
        Log-probs and entropies of softmax(logits / temperature), both [tokens] float32 nats.
    """
    logprobs_P, entropy_P = _chunked(_chunk_logprobs_and_entropy, hidden_PH, targets_P, temperatures_P, head, chunk)
    return logprobs_P, entropy_P


def _chunked(
    statistic: Callable[..., tuple[Tensor, ...]],
    hidden_PH: Tensor,
    targets_P: Tensor,
    temperatures_P: Tensor,
    head: nn.Module,
    chunk: int,
) -> list[Tensor]:
    # Splitting zero tokens gives one empty chunk, so that there is always a result.
    pieces = zip(hidden_PH.split(chunk), targets_P.split(chunk), temperatures_P.split(chunk), strict=True)
    if torch.is_grad_enabled() and hidden_PH.requires_grad:
        results = [checkpoint(statistic, *piece, head, use_reentrant=False) for piece in pieces]
    else:
        results = [statistic(*piece, head) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _chunk_logprobs(hidden_PH: Tensor, targets_P: Tensor, temperatures_P: Tensor, head: nn.Module) -> tuple[Tensor]:
    logits_PV: Tensor = head(hidden_PH).float() / temperatures_P[:, None]
    chosen_P = logits_PV.gather(1, targets_P[:, None]).squeeze(1)
    return (chosen_P - torch.logsumexp(logits_PV, dim=-1),)


def _chunk_logprobs_and_entropy(
    hidden_PH: Tensor, targets_P: Tensor, temperatures_P: Tensor, head: nn.Module
) -> tuple[Tensor, Tensor]:
    logits_PV: Tensor = head(hidden_PH).float() / temperatures_P[:, None]
    chosen_P = logits_PV.gather(1, targets_P[:, None]).squeeze(1)
    normaliser_P = torch.logsumexp(logits_PV, dim=-1)
    mean_logit_P = (torch.softmax(logits_PV, dim=-1) * logits_PV).sum(dim=-1)
    return chosen_P - normaliser_P, normaliser_P - mean_logit_P


def _is_fixed(head: nn.Module, hidden_PH: Tensor) -> bool:
    """Whether the head is a plain float32 linear layer on this process that is not trained."""
    if type(head) not in (Float32Head, OneDnnHead) or head.bias is not None or head.weight.requires_grad:
        return False
    autocast = torch.is_autocast_enabled(hidden_PH.device.type)
    return hidden_PH.dtype == head.weight.dtype == torch.float32 and not autocast and not head._forward_hooks


class _FixedHead(torch.autograd.Function):
    """Log-probs by a head that is not trained.

    The log-prob of a token depends only on its own hidden state, so its gradient is known as soon as the logits are:
    (weights of the target - their mean under the distribution) / temperature. The gradient is kept instead of the
    state, and the backward pass needs no logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, targets_P: Tensor, temperatures_P: Tensor, head: Float32Head, chunk: int
    ) -> Tensor:
        weight_VH, logprobs_P, directions_PH = head.weight, [], []
        for states_PH, chosen_P, temperature_P1 in zip(
            hidden_PH.split(chunk), targets_P.split(chunk), temperatures_P[:, None].split(chunk), strict=True
        ):
            logits_PV: Tensor = head(states_PH)
            if not bool((temperature_P1 == 1).all()):
                logits_PV.div_(temperature_P1)
            largest_P1 = logits_PV.amax(dim=-1, keepdim=True)
            of_target_P1 = logits_PV.gather(1, chosen_P[:, None])
            exponentials_PV = logits_PV.sub_(largest_P1).exp_()
            total_P1 = exponentials_PV.sum(dim=-1, keepdim=True)
            logprobs_P.append((of_target_P1 - largest_P1 - total_P1.log()).squeeze(1))
            mean_PH = head.product(exponentials_PV, weight_VH.t())
            directions_PH.append((weight_VH[chosen_P] - mean_PH.div_(total_P1)).div_(temperature_P1))
            del logits_PV, exponentials_PV  # freed before those of the next chunk are computed
        ctx.save_for_backward(torch.cat(directions_PH))
        return torch.cat(logprobs_P)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (directions_PH,) = ctx.saved_tensors
        return gradients[0][:, None] * directions_PH, None, None, None, None
