"""Requests and completions in vLLM's terms, the same in process and over HTTP."""

from collections.abc import Sequence
from typing import Any

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Completion, Request, derive_seed


def sampling_settings(request: Request, end_token_ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`: the whole distribution, nothing that the model's authors recommend.

    vLLM gives sample i the seed s + i. Hashing the request's seed first keeps neighbouring requests apart.
    """
    return {
        "n": samples(request),
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "seed": derive_seed(request.seed, "vllm"),
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": True,  # its own end tokens; ours are above
        "logprobs": 0,  # of the sampled token only
        "detokenize": False,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def samples(request: Request) -> int:
    """How many vLLM is asked for: greedy rationales are all the same, and vLLM writes no more than one."""
    return request.n if request.temperature > 0 else 1


def completions(
    request: Request, written: Sequence[tuple[Sequence[int], Sequence[float]]], end_token_ids: Sequence[int]
) -> list[Completion]:
    """The `n` completions of a request from (token ids, log-probs) of what vLLM wrote.

    A rationale that ends on its last allowed token has ended.
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
    """Refuse what the engine has no room for.

    Raises:
        GraceError: A prompt and its longest rationale are longer than the engine's sequences.
    """
    for request in requests:
        wanted = len(request.prompt_ids) + request.max_tokens
        if wanted > max_model_len:
            raise GraceError(
                f"a prompt of {len(request.prompt_ids)} tokens with up to {request.max_tokens} rationale tokens is "
                f"{wanted} long, but the vLLM engine was made for {max_model_len} (prompt.max_tokens + the largest "
                "of rollout.max_tokens, evaluation.max_tokens and job.encode.max_tokens): raise them"
            )
