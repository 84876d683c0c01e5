"""The interface of engines: they take token ids and return token ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from grace_exp.policy.pooled_states import PooledStates, StatePooling


@dataclass(frozen=True, slots=True)
class Request:
    """A request for rationales of one prompt.

    Attributes:
        prompt_ids: Token ids of the prompt.
        n: Number of rationales, each from its own random stream.
        max_tokens: Longest rationale, end token included.
        temperature: 0 is greedy; otherwise tokens are sampled from softmax(logits / temperature) over the whole
            vocabulary.
        seed: Root of the random streams. Equal seeds and prompts give equal rationales, whatever else the call holds.
        pooling: Also pool the hidden states of prompt and rationale, in engines with `pools_states`. The rationales do
            not change.
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
        token_ids: The sampled tokens, with the end token if one was written.
        logprobs: Log-probs of these tokens under the distribution they were sampled from (temperature 1 for greedy),
            nats.
        finish_reason: `stop` after an end token, `length` at `max_tokens` without one.
        pooled: Pooled hidden states, if the request asked for them and the engine has them.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    pooled: "PooledStates | None" = field(default=None, compare=False, repr=False)

    @property
    def truncated(self) -> bool:
        """Whether the rationale ended at the length limit."""
        return self.finish_reason == "length"


class RolloutEngine(Protocol):
    """Writes rationales. It knows nothing of training; the caller tells it when the weights have changed.

    An engine that can pool hidden states has the attribute `pools_states`, set to True.
    """

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the `n` completions of every request, in order.

        Processes that share an engine (`rollout.vllm.tensor_parallel`) must call it together, also those without a
        request.
        """
        ...

    def sync(self, model: "nn.Module") -> None:
        """Copy the model's present weights for all later rationales. An engine that sleeps is not woken."""
        ...

    def sleep(self) -> None:
        """Free the engine's device memory until the next `generate`; an engine without memory does nothing.

        `generate` wakes the engine, with the weights that its model has then.
        """
        ...

    def close(self) -> None:
        """End the engine's processes and free its memory."""
        ...


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for a draw that the parts identify, e.g. (run seed, step, role, instance).

    The parts are hashed rather than added, so that neighbouring steps or instances never share a stream.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
