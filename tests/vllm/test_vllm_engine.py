"""vLLM in this process."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from transformers import PreTrainedModel

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm import in_process
from grace_exp.rollout.vllm.in_process import VllmEngine

TOLERANCE = 1e-4


def tokens(answers: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    """Log-probs differ in the last digit with what is in the prefix cache."""
    return [[completion.token_ids for completion in answer] for answer in answers]


def test_logprobs_of_all_temperatures_in_one_call_are_those_of_a_plain_forward(
    engine: VllmEngine, shared_model: PreTrainedModel, requests: list[Request], worst: Any
) -> None:
    answers = engine.generate(requests)
    assert worst(shared_model, requests, answers) < TOLERANCE
    assert len({completion.token_ids for completion in answers[0]}) == 4
    assert answers[5][0] == answers[5][1]  # greedy


def test_rationales_are_the_same_alone_in_a_batch_and_in_any_order(engine: VllmEngine, requests: list[Request]) -> None:
    together = tokens(engine.generate(requests))
    assert [tokens(engine.generate([request]))[0] for request in requests] == together
    assert tokens(engine.generate(requests[::-1]))[::-1] == together


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_tokens_are_as_frequent_as_the_model_says(
    engine: VllmEngine, shared_model: PreTrainedModel, temperature: float
) -> None:
    prompt = tuple(range(3, 23))
    (answer,) = engine.generate([Request(prompt, 2000, 1, temperature, 0)])
    counts = np.bincount([completion.token_ids[0] for completion in answer], minlength=1024)
    with torch.no_grad():
        logits = shared_model(torch.tensor([prompt])).logits[0, -1].double()
    expected = 2000 * (logits / temperature).softmax(-1).numpy()
    # Parts of the vocabulary of about the same probability, neighbours together.
    _, part = np.unique(np.floor(expected.cumsum() * 24 / 2000), return_inverse=True)
    assert chisquare(np.bincount(part, counts), np.bincount(part, expected)).pvalue > 1e-3


def test_rationales_end_with_an_end_token_or_at_the_limit(engine: VllmEngine, requests: list[Request]) -> None:
    ends = engine._end_token_ids
    found = [completion for answer in engine.generate(requests) for completion in answer]
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for completion in found:
        *inside, last = completion.token_ids
        assert not set(inside) & set(ends)
        assert (last in ends) == (completion.finish_reason == "stop")
        assert len(completion.logprobs) == len(completion.token_ids)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora-merged"])
def test_five_optimizer_steps_reach_the_engine_at_the_sync_and_not_before(
    engine: VllmEngine,
    model: PreTrainedModel,
    requests: list[Request],
    worst: Any,
    five_updates: Any,
    with_adapters: Any,
    adapters: bool,
) -> None:
    policy = with_adapters(model) if adapters else model
    engine.sync(policy)
    before = engine.generate(requests)
    assert worst(policy, requests, before) < TOLERANCE
    five_updates(policy)
    assert tokens(engine.generate(requests)) == tokens(before)  # rollouts of one step come from one policy
    engine.sync(policy)
    after = engine.generate(requests)
    assert worst(policy, requests, after) < TOLERANCE
    assert tokens(after) != tokens(before)


@pytest.fixture
def adapter_engine(model: PreTrainedModel, make: Any, with_adapters: Any) -> Iterator[tuple[VllmEngine, nn.Module]]:
    from grace_exp.config.vllm import VllmConfig

    policy = with_adapters(model)
    engine = make(policy, VllmConfig(max_sequences=16, lora="adapter", probe=True))
    yield engine, policy
    engine.close()


def test_an_adapter_is_sent_by_itself(
    adapter_engine: tuple[VllmEngine, nn.Module], requests: list[Request], worst: Any, five_updates: Any
) -> None:
    engine, policy = adapter_engine
    before = engine.generate(requests)
    assert worst(policy, requests, before) < TOLERANCE
    five_updates(policy)
    assert tokens(engine.generate(requests)) == tokens(before)
    engine.sync(policy)
    after = engine.generate(requests)
    assert worst(policy, requests, after) < TOLERANCE
    assert tokens(after) != tokens(before)
    engine.sync(policy)
    assert tokens(engine.generate(requests)) == tokens(after)
    assert engine._llm.llm_engine.list_loras() == {3}


def test_the_prefix_cache_is_fresh_after_a_sync(
    engine: VllmEngine,
    model: PreTrainedModel,
    requests: list[Request],
    worst: Any,
    five_updates: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = [requests[2], requests[4]]  # longer than a block of the cache
    engine.sync(model)
    engine.generate(long)
    five_updates(model)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.sync(model)
        assert worst(model, long, engine.generate(long)) > 0.1  # the test would see a stale one
    engine.sync(model)
    assert worst(model, long, engine.generate(long)) < TOLERANCE


def test_the_probe_finds_weights_that_arrived_wrong(
    engine: VllmEngine, model: PreTrainedModel, five_updates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(engine, "_settings", replace(engine._settings, probe=True))
    engine.sync(model)
    five_updates(model)
    fresh = in_process.checkpoint_weights
    monkeypatch.setattr(
        in_process,
        "checkpoint_weights",
        lambda policy: ((name, value * (0.5 if "embed" in name else 1)) for name, value in fresh(policy)),
    )
    with pytest.raises(GraceError, match="differ from the policy's"):
        engine.sync(model)


def test_calls_leave_generators_threads_and_modes_alone(
    engine: VllmEngine, model: PreTrainedModel, requests: list[Request]
) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = draw()
    threads = torch.get_num_threads()
    seed()
    model.train()
    engine.sync(model)
    engine.generate(requests)
    assert draw() == expected
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_sequence_that_is_too_long_is_refused_before_anything_is_written(engine: VllmEngine) -> None:
    with pytest.raises(GraceError, match=r"prompt of 150 tokens with up to 20 .* made for 160"):
        engine.generate([Request((5,) * 150, 1, 20, 1.0, 0)])


def test_log_probs_that_are_not_finite_are_passed_on(
    engine: VllmEngine, model: PreTrainedModel, requests: list[Request]
) -> None:
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    engine.sync(model)
    (answer,) = engine.generate(requests[:1])
    assert np.isnan([value for completion in answer for value in completion.logprobs]).all()


def test_a_failure_inside_vllm_is_told_as_one(
    engine: VllmEngine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the core is dead")

    monkeypatch.setattr(engine._llm, "generate", fail)
    with pytest.raises(GraceError, match="vLLM failed in writing rationales: the core is dead"):
        engine.generate(requests)


def test_an_engine_sleeps_only_where_there_is_a_device_to_give_back(
    engine: VllmEngine, requests: list[Request]
) -> None:
    before = engine.generate(requests)
    engine.sleep()
    assert tokens(engine.generate(requests)) == tokens(before)


def test_rewards_are_distributed_as_with_the_transformers_engine(
    reward_of_run: Callable[[str, int], list[float]],
) -> None:
    seeds = range(6)
    ours = np.array([reward_of_run("vllm", seed) for seed in seeds])
    theirs = np.array([reward_of_run("transformers", seed) for seed in seeds])
    assert ours.shape == theirs.shape == (len(seeds), 5)
    difference = (ours - theirs).mean(axis=1)  # the same data and first weights, seed by seed
    assert not np.allclose(ours, theirs)  # another sampler
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / len(seeds) ** 0.5
