from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.data.batch import Role
from grace_exp.data.prompts import PromptBuilder
from grace_exp.encoder.embedding import Embedded, embed_texts
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine

TEXTS = ["A cat sleeps.", "Rain in May", "A cat sleeps.", "Prices fell by 3 %", "Rain in May", "x"]
REGIONS: tuple[Region, ...] = get_args(Region)


class Counting(TransformersEngine):
    """Keeps what it was asked."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, end_token_ids=[2], pad_token_id=0, batch_tokens=10_000)
        self.calls: list[list[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.calls.append(list(requests))
        return super().generate(requests)


@pytest.fixture
def engine(shared_model: PreTrainedModel) -> Counting:
    return Counting(shared_model)


@pytest.fixture
def policy(shared_model: PreTrainedModel) -> Policy:
    return Policy(shared_model, PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    instructions = InstructionsConfig(query="A question.")
    return PromptBuilder(tokenizer, PromptConfig(name="p", system="Read.", instructions=instructions, max_tokens=128))


@pytest.fixture
def embed(engine: Counting, policy: Policy, prompts: PromptBuilder) -> Any:
    def embed(texts: Sequence[str], role: Role = Role.QUERY, temperature: float = 0.0, seed: int = 0) -> Embedded:
        return embed_texts(
            texts,
            role,
            policy=policy,
            engine=engine,
            prompts=prompts,
            max_tokens=8,
            temperature=temperature,
            seed=seed,
            regions=REGIONS,
        )

    return embed


def test_equal_texts_are_written_to_once(embed: Any, engine: Counting, prompts: PromptBuilder) -> None:
    embedded = embed(TEXTS)
    assert len(engine.calls) == 1
    distinct = list(dict.fromkeys(TEXTS))
    assert [request.prompt_ids for request in engine.calls[0]] == [
        prompts(Role.QUERY, text).token_ids for text in distinct
    ]
    assert len(embedded.completions) == len(TEXTS)
    for vectors in embedded.embeddings.values():
        assert vectors.shape == (6, 64)
        assert vectors.dtype == np.float32
        assert (vectors[0] == vectors[2]).all()
        assert (vectors[1] == vectors[4]).all()
        assert len({vector.tobytes() for vector in vectors}) == 4
    assert embedded.completions[0] == embedded.completions[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_embeddings_are_those_that_training_computes(
    embed: Any, policy: Policy, prompts: PromptBuilder, shared_model: PreTrainedModel, temperature: float
) -> None:
    embedded = embed(TEXTS, temperature=temperature)
    sequences = [
        TextSequence(prompts(Role.QUERY, text), completion.token_ids, temperature)
        for text, completion in zip(TEXTS, embedded.completions, strict=True)
    ]
    batch = policy.collate(sequences, range(len(sequences)))  # as in an update, with gradients
    for region, values in policy(batch, REGIONS)[0].items():
        np.testing.assert_allclose(embedded.embeddings[region], values.numpy(), atol=1e-5)
    # And by definition: the mean over text and rationale of the last hidden states.
    for vector, sequence in zip(embedded.embeddings["text_and_rationale"], sequences, strict=True):
        ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]])
        with torch.no_grad():
            hidden: Any = shared_model(ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(vector, hidden[0, sequence.prompt.pool_start :].mean(0).numpy(), atol=1e-5)


def test_a_sampled_rationale_depends_on_seed_role_and_text_alone(embed: Any) -> None:
    together = embed(TEXTS, temperature=1.0, seed=4).completions
    alone = [embed([text], temperature=1.0, seed=4).completions[0] for text in TEXTS]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]
    assert embed(TEXTS, temperature=1.0, seed=5).completions != together


def test_the_instruction_is_that_of_the_role(embed: Any, engine: Counting, prompts: PromptBuilder) -> None:
    embed(TEXTS[:1], Role.POSITIVE)
    assert engine.calls[0][0].prompt_ids == prompts(Role.POSITIVE, TEXTS[0]).token_ids
    assert engine.calls[0][0].prompt_ids != prompts(Role.QUERY, TEXTS[0]).token_ids


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["shared", "fewer_than_processes"])
def test_processes_share_the_texts_and_all_get_everything(
    embed: Any, engine: Counting, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    alone = embed(texts, temperature=1.0)
    shares: dict[int, Embedded] = {}
    here = {"rank": 0}

    def gather(parts: list[Embedded], own: Embedded) -> None:
        shares[here["rank"]] = own
        parts[:] = [shares.get(process, own) for process in range(3)]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: here["rank"])
    monkeypatch.setattr(dist, "all_gather_object", gather)
    for here["rank"] in (0, 1, 2, 0):  # after a round, the shares of all processes are there
        together = embed(texts, temperature=1.0)
    asked = [request.prompt_ids for call in engine.calls[1:4] for request in call]
    assert len(asked) == max(3, len(set(texts)))  # each text once; a process without any takes part all the same
    assert [c.token_ids for c in together.completions] == [c.token_ids for c in alone.completions]
    for region, values in alone.embeddings.items():
        np.testing.assert_allclose(together.embeddings[region], values, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", ["mean", "last", "max"])
def test_one_pass_is_the_forward_within_rounding_and_computes_each_text_once(
    shared_model: PreTrainedModel, engine: Counting, prompts: PromptBuilder, method: Any, temperature: float
) -> None:
    def embedded(one_pass: bool) -> tuple[Embedded, int]:
        hardware = HardwareConfig(name="cpu", one_pass=one_pass)
        policy = Policy(shared_model, PoolingConfig(method=method), hardware, pad_token_id=0)
        settings: dict[str, Any] = {"max_tokens": 6, "temperature": temperature, "seed": 3, "regions": REGIONS}
        settings |= {"samples": 2 if temperature else 1, "batch_size": 2}
        found = embed_texts(
            TEXTS * 3 + ["y", "z " * 30], Role.QUERY, policy=policy, engine=engine, prompts=prompts, **settings
        )
        return found, policy.scored.tokens

    (fast, fast_tokens), (plain, plain_tokens) = embedded(True), embedded(False)
    assert fast.completions == plain.completions
    assert all(completion.pooled is None for completion in fast.completions)
    for region, expected in plain.embeddings.items():
        distances = np.linalg.norm(fast.embeddings[region] - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert distances.max() < 1e-5
    assert 0 < fast_tokens < plain_tokens / 2  # the first batch, to compare
