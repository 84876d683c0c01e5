"""Hidden states pooled while rationales are written, against the policy's forward over the same tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.prompts import Prompt
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.pooled_states import StatePooling
from grace_exp.rollout.protocol import Completion, Request

REGIONS: tuple[Region, ...] = ("text", "rationale", "text_and_rationale")
Prompts = list[tuple[int, ...]]


def asked(
    prompts: Prompts, starts: Sequence[int | None], *, method: str, layer: int, n: int = 3, temperature: float = 1.0
) -> list[Request]:
    """Limits differ, so that rows end at different steps; some requests pool nothing (`None`)."""
    return [
        Request(
            prompt,
            n,
            4 + 3 * (number % 4),
            temperature,
            number,
            None if start is None else StatePooling(start, method, layer),  # type: ignore[arg-type]
        )
        for number, (prompt, start) in enumerate(zip(prompts, starts, strict=True))
    ]


def largest_difference(
    model: PreTrainedModel, requests: Sequence[Request], answers: Sequence[Sequence[Completion]], **pooling: Any
) -> float:
    """Of any embedding, as a share of the forward's."""
    policy = Policy(model, PoolingConfig(**pooling), HardwareConfig(name="cpu"), pad_token_id=2)
    pairs = [
        (TextSequence(Prompt(request.prompt_ids, request.pooling.start), completion.token_ids), completion.pooled)
        for request, answer in zip(requests, answers, strict=True)
        for completion in answer
        if request.pooling is not None
    ]
    forward = policy.embed([sequence for sequence, _ in pairs], REGIONS)
    worst = 0.0
    for region in REGIONS:
        for (_, pooled), expected in zip(pairs, forward[region], strict=True):
            assert pooled is not None
            worst = max(worst, float((pooled.embedding(region) - expected).norm() / expected.norm()))
    return worst


@pytest.fixture
def related(prompts: Prompts) -> Prompts:
    """With a common head, equal ones among them, and one of a single token."""
    head = prompts[2][:9]
    return [head + prompts[0], head, head + prompts[5], head + prompts[1], head + prompts[0], prompts[2][:1]]


@pytest.mark.parametrize("layer", [-1, 1, 0])
@pytest.mark.parametrize("method", ["mean", "last", "max"])
def test_pooled_states_are_those_of_the_forward(
    shared_model: PreTrainedModel, engine: Any, related: Prompts, method: str, layer: int
) -> None:
    # Pooling starts within the common head, at its end, behind it, and at the last token.
    requests = asked(related, (4, 8, 10, 9, 9, 0), method=method, layer=layer)
    answers = engine().generate(requests)
    ends = {completion.finish_reason for answer in answers for completion in answer}
    assert ends == {"stop", "length"}
    assert largest_difference(shared_model, requests, answers, method=method, layer=layer) < 1e-5


@pytest.mark.parametrize(("end_token_ids", "batch_tokens"), [((), 100_000), (range(1024), 100_000), ((2,), 1)])
def test_the_last_token_counts_whether_it_ends_the_rationale_or_is_cut_off(
    shared_model: PreTrainedModel, engine: Any, prompts: Prompts, end_token_ids: Any, batch_tokens: int
) -> None:
    requests = asked(prompts, (0,) * 6, method="mean", layer=-1, temperature=0.0, n=1)
    answers = engine(end_token_ids=end_token_ids, batch_tokens=batch_tokens).generate(requests)
    assert largest_difference(shared_model, requests, answers) < 1e-5
    for answer in answers:
        (completion,) = answer
        assert completion.pooled.rationale_tokens == len(completion.token_ids)


def test_each_thread_pools_its_own_rows(shared_model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    requests = asked(prompts * 3, (0, 0, 7, 2, 3, 18) * 3, method="mean", layer=-1)
    torch.set_num_threads(3)
    answers = engine().generate(requests)
    assert largest_difference(shared_model, requests, answers) < 1e-5


def test_requests_without_pooling_get_none_and_all_write_what_they_would(engine: Any, prompts: Prompts) -> None:
    requests = asked(prompts, (None, 0, None, 2, 3, None), method="mean", layer=-1)
    answers = engine().generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert all((completion.pooled is None) == (request.pooling is None) for completion in answer)
    plain = asked(prompts, (None,) * 6, method="mean", layer=-1)
    assert engine().generate(plain) == answers


def test_states_of_two_layers_in_one_call_are_refused(engine: Any, prompts: Prompts) -> None:
    requests = [
        *asked(prompts[:1], (0,), method="mean", layer=-1),
        *asked(prompts[1:2], (0,), method="mean", layer=1),
    ]
    with pytest.raises(ValueError, match=r"one call pools one layer's hidden states, not those of \[-1, 1\]"):
        engine().generate(requests)


def test_nothing_of_it_stays_behind(model: PreTrainedModel, engine: Any, prompts: Prompts) -> None:
    before = [len(module._forward_hooks) for module in model.modules()]  # the model is shared with other tests
    engine(model).generate(asked(prompts, (0,) * 6, method="mean", layer=1))
    assert [len(module._forward_hooks) for module in model.modules()] == before
