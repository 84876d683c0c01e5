import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine

END_TOKENS = (2, *range(40, 100))
"""Many, so that random rationales end by themselves about half of the time."""

Engine = Callable[..., TransformersEngine]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The engine divides requests among torch's threads; tests that count batches need one share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts() -> list[tuple[int, ...]]:
    """Of mixed lengths, down to one token."""
    draw = random.Random(7)
    return [tuple(draw.randrange(3, 1024) for _ in range(length)) for length in (12, 1, 30, 5, 12, 19)]


@pytest.fixture
def engine(shared_model: PreTrainedModel) -> Engine:
    """Makes an engine; by default of the shared tiny model, with many end tokens."""

    def make(
        model: nn.Module = shared_model,
        *,
        end_token_ids: Sequence[int] = END_TOKENS,
        batch_tokens: int = 100_000,
        training: bool = False,
    ) -> TransformersEngine:
        return TransformersEngine(
            model,  # type: ignore[arg-type]
            end_token_ids=end_token_ids,
            pad_token_id=2,  # as in many models: padding is an end token too
            batch_tokens=batch_tokens,
            training=training,
        )

    return make


@torch.no_grad()
def plain_logprobs(model: nn.Module, request: Request, completion: Completion) -> Tensor:
    """Log-probs of a rationale from one whole forward without cache or padding."""
    logits = model(torch.tensor([[*request.prompt_ids, *completion.token_ids]])).logits[0].double()
    before = logits[len(request.prompt_ids) - 1 : -1] / (request.temperature or 1.0)
    return before.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


@pytest.fixture(name="plain_logprobs")
def _plain_logprobs() -> Callable[[nn.Module, Request, Completion], Tensor]:
    return plain_logprobs
