"""Let vLLM also read the last token of a rationale: it is asked for one more token, and stops after that.

Decoding does not need the hidden state of the last token, but an embedding does. vLLM's scheduler asks one function
whether a request is done; for marked requests that function answers one token later. The tokens before do not change.
"""

from collections.abc import Sequence
from typing import Any

from grace_exp.rollout.protocol import Completion, Request

_MARK = "grace_exp"


def marked(settings: dict[str, Any], number: int, max_model_len: int, prompt_tokens: int) -> dict[str, Any]:
    """Return the arguments of `SamplingParams` for a marked request.

    Args:
        settings: Arguments of an ordinary request.
        number: The request's number, by which its states are collected.
        max_model_len: Longest sequence of the engine; a sequence of this length has no room for one more token.
        prompt_tokens: Length of the prompt.
    """
    return settings | {
        "max_tokens": min(settings["max_tokens"] + 1, max_model_len - prompt_tokens),
        "stop_token_ids": [],
        "extra_args": {_MARK: {"number": number, "ends": list(settings["stop_token_ids"])}},
    }


def mark_of(sampling_params: Any) -> int | None:
    """Return the number of a marked request; None if it is not marked."""
    found = ((sampling_params and sampling_params.extra_args) or {}).get(_MARK)
    return None if found is None else int(found["number"])


def without_it(
    request: Request, written: tuple[Sequence[int], Sequence[float]], end_token_ids: Sequence[int]
) -> Completion:
    """Return the completion that the request would have got without the mark."""
    tokens, logprobs = list(written[0])[: request.max_tokens], written[1]
    end = next((place for place, token in enumerate(tokens) if token in end_token_ids), None)
    length = len(tokens) if end is None else end + 1
    return Completion(tuple(tokens[:length]), tuple(logprobs[:length]), "length" if end is None else "stop")


def prepare() -> None:
    """Replace vLLM's function in this process, once; requests without a mark still get vLLM's answer."""
    from vllm.v1.core.sched import scheduler
    from vllm.v1.request import RequestStatus

    plain = scheduler.check_stop
    if getattr(plain, "of_grace_exp", False):
        return

    def check_stop(request: Any, max_model_len: int) -> bool:
        found = (request.sampling_params.extra_args or {}).get(_MARK)
        tokens = request.output_token_ids
        if found is not None and len(tokens) > 1 and tokens[-2] in found["ends"]:
            request.status = RequestStatus.FINISHED_STOPPED
            return True
        return bool(plain(request, max_model_len))

    check_stop.of_grace_exp = True  # type: ignore[attr-defined]
    scheduler.check_stop = check_stop
