"""Check after every sync that engine and policy agree on a few tokens, if `rollout.vllm.probe` is set."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Completion, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT_TOKENS = 64
"""Length of the prompt: some blocks of the key-value cache, so that a prefix cache of older weights shows."""
_TOKENS = 8
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Largest mean absolute difference, in nats, by precision."""


@torch.no_grad()
def probe(
    generate: Callable[[Sequence[Request]], list[list[Completion]]],
    model: "PreTrainedModel",
    *,
    max_model_len: int,
    dtype: torch.dtype,
) -> float:
    """Let the engine write, score the same tokens with the policy, and compare the log-probs.

    Args:
        generate: The engine's `generate`.
        model: The policy, with or without adapters.
        max_model_len: Longest sequence of the engine.
        dtype: Precision of the engine's weights.

    Returns:
        The mean absolute difference of the log-probs, nats.

    Raises:
        GraceError: They differ by more than rounding explains.
    """
    tokens = min(_TOKENS, max_model_len - 1)
    length = min(_PROMPT_TOKENS, max_model_len - tokens)
    vocabulary = model.config.get_text_config().vocab_size
    prompt = tuple(token * 7919 % vocabulary for token in range(1, length + 1))
    (written,) = generate([Request(prompt, 1, tokens, 1.0, 0)])
    ids = written[0].token_ids

    training = model.training
    model.eval()
    try:
        logits = model(input_ids=torch.tensor([[*prompt, *ids]], device=model.device), use_cache=False).logits
    finally:
        model.train(training)
    logprobs = logits[0, length - 1 : -1].float().log_softmax(dim=-1)
    chosen_logprobs = logprobs.gather(1, torch.tensor(ids, device=model.device)[:, None]).squeeze(1).cpu()
    difference = float((chosen_logprobs - torch.tensor(written[0].logprobs)).abs().mean())
    if not difference <= _TOLERANCE[dtype]:
        raise GraceError(
            f"after a weight sync vLLM's log-probs differ from the policy's by {difference:.3g} nats on average "
            f"(at most {_TOLERANCE[dtype]:g} is rounding in {str(dtype).split('.')[-1]}): its weights or its prefix "
            "cache are not the policy's. Try rollout.vllm.lora=merged, a tested vLLM version, or rollout=transformers"
        )
    return difference
