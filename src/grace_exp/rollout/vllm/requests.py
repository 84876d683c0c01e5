"""Requests and completions in vLLM's terms, for the engine in process and over HTTP."""

from collections.abc import Sequence
from typing import Any

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Completion, Request, derive_seed


def sampling_settings(request: Request, end_token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams`: the whole distribution, without settings from the model's files.

    vLLM gives sample i the seed s + i. Hashing the request's seed first keeps neighbouring requests apart.
    """
    return {
        "n": samples(request),
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "seed": derive_seed(request.seed, "vllm"),
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": True,  # vLLM's end tokens; those of the request are set above
        "logprobs": 0,  # only that of the sampled token
        "detokenize": False,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def samples(request: Request) -> int:
    """Return how many samples vLLM writes: one for greedy requests, because all n would be equal."""
    return request.n if request.temperature > 0 else 1


def completions(
    request: Request, written: Sequence[tuple[Sequence[int], Sequence[float]]], end_token_ids: Sequence[int]
) -> list[Completion]:
    """Return the `n` completions of a request from what vLLM wrote: (token ids, log-probs).

    A rationale whose last allowed token is an end token counts as ended.
    """
    found = [
        Completion(
            tuple(token_ids),
            tuple(logprobs),
            "stop" if token_ids[-1] in end_token_ids else "length",
        )
        for token_ids, logprobs in written
    ]
    return found * request.n if samples(request) < request.n else found


def check_lengths(requests: Sequence[Request], max_model_len: int) -> None:
    """Refuse requests that are too long for the engine.

    Raises:
        GraceError: A prompt plus its longest rationale is longer than the engine's sequences.
    """
    for request in requests:
        wanted = len(request.prompt_ids) + request.max_tokens
        if wanted > max_model_len:
            raise GraceError(
                f"a prompt of {len(request.prompt_ids)} tokens with up to {request.max_tokens} rationale tokens is "
                f"{wanted} long, but the vLLM engine was made for {max_model_len} (prompt.max_tokens + the largest "
                "of rollout.max_tokens, evaluation.max_tokens and job.encode.max_tokens): raise them"
            )
