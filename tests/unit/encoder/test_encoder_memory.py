"""Out of memory and interruptions: the encoder continues and does not repeat finished work."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp import GraceEncoder
from grace_exp.config.backbone import BackboneConfig, LoraConfig, PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.encoder.cache import RationaleCache
from grace_exp.encoder.fingerprint import fingerprint
from grace_exp.policy.load_backbone import Backbone, load_backbone
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.transformers_engine import TransformersEngine

TEXTS = [f"text {number} {'and more ' * (number % 4)}" for number in range(12)]


class Limited(TransformersEngine):
    """Runs out of memory beyond `room` requests, dies after `calls` calls; counts what it answered."""

    room = 1000
    calls = 1000
    answered = 0

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        if len(requests) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.answered += len(requests)
        return super().generate(requests)


class LimitedPolicy(Policy):
    """Runs out of memory beyond `room` sequences."""

    room = 1000
    forwarded = 0

    def embed(self, sequences: Sequence[TextSequence], regions: Any = ()) -> Any:
        if len(sequences) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.forwarded += len(sequences)
        return super().embed(sequences, regions)


Make = Callable[..., tuple[GraceEncoder, Limited, LimitedPolicy]]


@pytest.fixture
def make(shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Make:
    """Makes an encoder with a cache, its engine and its policy."""

    def make(
        model: PreTrainedModel = shared_model, pooling: PoolingConfig | None = None, cached: bool = True
    ) -> tuple[GraceEncoder, Limited, LimitedPolicy]:
        engine = Limited(model, end_token_ids=[2], pad_token_id=0, batch_tokens=10_000)
        policy = LimitedPolicy(model, pooling or PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)
        encoder = GraceEncoder(
            Backbone(model, tokenizer, (2,), 0),
            policy=policy,
            engine=engine,
            prompt=PromptConfig(name="p", system="Read."),
            max_tokens=6,
            cache=RationaleCache(tmp_path) if cached else None,
        )
        return encoder, engine, policy

    return make


@pytest.fixture
def expected(make: Make) -> np.ndarray:
    return np.asarray(make(cached=False)[0].encode(TEXTS))


@pytest.mark.parametrize("cached", [True, False])
def test_out_of_memory_while_writing_halves_the_batch(
    make: Make, expected: np.ndarray, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    encoder, engine, _ = make(cached=cached)
    engine.room = 3
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=12), expected, atol=1e-5)
    assert [record.message for record in caplog.records] == [
        "out of memory with 12 texts at a time: continuing with 6",
        "out of memory with 6 texts at a time: continuing with 3",
    ]


@pytest.mark.parametrize("cached", [True, False])
def test_out_of_memory_in_the_forward_writes_nothing_twice(make: Make, expected: np.ndarray, cached: bool) -> None:
    encoder, engine, policy = make(cached=cached)
    policy.room = 4
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert engine.answered == len(TEXTS)


def test_a_single_text_that_does_not_fit_is_an_error(make: Make) -> None:
    encoder, engine, _ = make()
    engine.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(TEXTS)


def test_an_interrupted_encode_goes_on_after_its_last_batch(make: Make, expected: np.ndarray) -> None:
    first, engine, _ = make()
    engine.calls = 2
    with pytest.raises(KeyboardInterrupt):
        first.encode(TEXTS, batch_size=4)
    second, engine, policy = make()
    np.testing.assert_allclose(second.encode(TEXTS, batch_size=4), expected, atol=1e-5)
    assert (engine.answered, policy.forwarded) == (4, 4)


def test_rationales_written_before_a_crash_of_the_forward_are_kept(make: Make, expected: np.ndarray) -> None:
    first, _, policy = make()
    policy.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        first.encode(TEXTS, batch_size=1)
    second, engine, _ = make()
    np.testing.assert_allclose(second.encode(TEXTS), expected, atol=1e-5)
    assert engine.answered == len(TEXTS) - 1


def test_other_weights_are_another_model(make: Make, model: PreTrainedModel) -> None:
    make()[0].encode(TEXTS)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    encoder, engine, _ = make(model)
    encoder.encode(TEXTS)
    assert engine.answered == len(TEXTS)
    before = encoder.fingerprint
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.1)
    encoder.weights_changed()
    assert encoder.fingerprint != before
    encoder.encode(TEXTS)
    assert engine.answered == 2 * len(TEXTS)


def test_another_pooling_writes_nothing_again(make: Make) -> None:
    make()[0].encode(TEXTS)
    encoder, engine, policy = make(pooling=PoolingConfig(method="last"))
    encoder.encode(TEXTS)
    assert (engine.answered, policy.forwarded) == (0, len(TEXTS))
    encoder.encode(TEXTS, max_tokens=5)
    assert engine.answered == len(TEXTS)


def test_prompt_only_embeddings_are_kept_too(make: Make) -> None:
    first = make()[0].encode(TEXTS, mode="prompt_only")
    encoder, _, policy = make()
    np.testing.assert_array_equal(encoder.encode(TEXTS, mode="prompt_only", temperature=1.0, seed=7), first)
    assert policy.forwarded == 0


def test_another_precision_is_another_model(make: Make) -> None:
    make()[0].encode(TEXTS[:2])
    encoder, engine, _ = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder.encode(TEXTS[:2])
    assert engine.answered == 2


def test_the_fingerprint_is_of_weights_and_settings_wherever_they_came_from(model: PreTrainedModel) -> None:
    before = fingerprint(model)
    other = copy.deepcopy(model)
    other.config._name_or_path = "elsewhere"
    assert fingerprint(other) == before
    other.config.rms_norm_eps = 1e-3
    assert fingerprint(other) != before
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) != before


def test_the_fingerprint_sees_adapters_and_their_strength(tmp_path: Path) -> None:
    def adapted(alpha: float) -> Any:
        config = BackboneConfig(name="tiny", source="tiny", lora=LoraConfig(rank=2, alpha=alpha))
        return load_backbone(config, cache_dir=tmp_path, seed=0, dtype=torch.float32).model

    model = adapted(4.0)
    before = fingerprint(model)
    assert before == fingerprint(adapted(4.0)) != fingerprint(adapted(8.0))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    assert fingerprint(model) != before
