"""Hidden states that vLLM had while it wrote, against the policy's forward."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from grace_exp.rollout.vllm.in_process import VllmEngine

REGIONS: tuple[Region, ...] = ("text", "rationale", "text_and_rationale")
START = 19


@pytest.fixture
def pooled() -> Callable[..., list[Request]]:
    """Prompts with a head of 37 tokens in common, pooled from within it; one fills the engine up."""

    def make(method: Any = "mean", temperature: float = 1.0) -> list[Request]:
        draw = random.Random(3)
        head = tuple(draw.randrange(3, 1024) for _ in range(37))
        lengths = (3, 30, 64, 1, 11, 90, 30, 108)
        limits = (9, 15, 5, 1, 20, 12, 15, 15)
        return [
            Request(
                (*head, *(draw.randrange(3, 1024) for _ in range(length))),
                1,
                limit,
                temperature,
                seed,
                StatePooling(START, method, -1),
            )
            for seed, (length, limit) in enumerate(zip(lengths, limits, strict=True))
        ]

    return make


def compare(
    model: PreTrainedModel, requests: Sequence[Request], answers: Sequence[Sequence[Completion]], method: Any = "mean"
) -> tuple[float, int]:
    """The largest difference of an embedding, as a share of the forward's, and how many have states."""
    policy = Policy(model, PoolingConfig(method=method), HardwareConfig(name="cpu"), pad_token_id=2)
    pairs = [
        (TextSequence(Prompt(request.prompt_ids, START), completion.token_ids), completion.pooled)
        for request, (completion,) in zip(requests, answers, strict=True)
        if completion.pooled is not None
    ]
    forward = policy.embed([sequence for sequence, _ in pairs], REGIONS)
    worst = 0.0
    for region in REGIONS:
        for (_, found), expected in zip(pairs, forward[region], strict=True):
            assert found is not None
            worst = max(worst, float((found.embedding(region) - expected).norm() / expected.norm()))
    return worst, len(pairs)


@pytest.mark.parametrize("method", ["mean", "last", "max"])
def test_pooled_states_are_those_of_the_forward(
    engine: VllmEngine, shared_model: PreTrainedModel, pooled: Any, method: str
) -> None:
    requests = pooled(method)
    answers = engine.generate(requests)
    assert {one.finish_reason for (one,) in answers} == {"stop", "length"}
    worst, found = compare(shared_model, requests, answers, method)
    assert worst < 1e-5
    assert found >= len(requests) - 1  # the one that fills the engine up has no room for its last token


def test_what_is_written_is_what_would_be_without(engine: VllmEngine, pooled: Any) -> None:
    requests = pooled()
    plain = engine.generate([replace(request, pooling=None) for request in requests])
    with_states = engine.generate(requests)
    for (expected,), (found,) in zip(plain, with_states, strict=True):
        assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
        assert expected.pooled is None


def test_prompts_that_vllm_has_in_its_cache_keep_their_states_until_the_weights_change(
    engine: VllmEngine, shared_model: PreTrainedModel, model: PreTrainedModel, pooled: Any
) -> None:
    engine.generate(pooled())
    again = pooled(temperature=0.5)
    worst, found = compare(shared_model, again, engine.generate(again))
    assert worst < 1e-5 and found >= len(again) - 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    engine.sync(model)
    worst, found = compare(model, again, engine.generate(again))
    assert worst < 1e-5 and found >= len(again) - 1


def test_what_cannot_be_pooled_is_left_to_the_forward(engine: VllmEngine, pooled: Any) -> None:
    several = replace(pooled()[0], n=3)
    inner = replace(pooled()[1], pooling=StatePooling(START, "mean", 1))
    answers = engine.generate([several, inner, pooled()[2]])
    assert [[one.pooled is None for one in answer] for answer in answers] == [[True] * 3, [True], [False]]
