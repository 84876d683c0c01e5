"""What an engine is asked and what it answers: token ids in, token ids out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from grace_exp.policy.pooled_states import PooledStates, StatePooling


@dataclass(frozen=True, slots=True)
class Request:
    """Rationales wanted for one prompt.

    Attributes:
        prompt_ids: Token ids of the prompt.
        n: Number of rationales, each from its own random stream.
        max_tokens: Longest rationale, end token included.
        temperature: 0 is greedy; otherwise samples come from softmax(logits / temperature), the whole vocabulary.
        seed: Root of the random streams: equal seeds and prompts give equal rationales whatever else is in the call.
        pooling: Also pool the hidden states of prompt and rationale; for engines with `pools_states`. It changes no
            rationale.
    """

    prompt_ids: tuple[int, ...]
    n: int
    max_tokens: int
    temperature: float
    seed: int
    pooling: "StatePooling | None" = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One rationale.

    Attributes:
        token_ids: Sampled tokens, the end token included where one was written.
        logprobs: Of those tokens under the distribution they were sampled from (temperature 1 for greedy), nats.
        finish_reason: `stop` after an end token, `length` at `max_tokens` without one.
        pooled: Hidden states, where the request asked for them and the engine has them; no part of the rationale.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    pooled: "PooledStates | None" = field(default=None, compare=False, repr=False)

    @property
    def truncated(self) -> bool:
        """Whether the length limit ended it."""
        return self.finish_reason == "length"


class RolloutEngine(Protocol):
    """Writes rationales. Knows nothing of training: the caller says when the weights have changed.

    An engine that can pool hidden states has a true attribute `pools_states`.
    """

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answer every request, in order, each with its `n` completions.

        Processes that share an engine (`rollout.vllm.tensor_parallel`) call it together, if need be with no request.
        """
        ...

    def sync(self, model: "nn.Module") -> None:
        """Take over the model's present weights; later rationales come from them. This wakes no engine that sleeps."""
        ...

    def sleep(self) -> None:
        """Give the device's memory to others until the next `generate`; an engine that holds none does nothing.

        `generate` wakes an engine that sleeps, with the weights that its model has then.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a draw, e.g. (run seed, step, role, instance).

    Hashed rather than added, so that neighbouring steps or instances never share a stream.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
