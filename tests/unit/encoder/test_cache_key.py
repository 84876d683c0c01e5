"""The cache key contains everything that a rationale or an embedding depends on."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp import GraceEncoder
from grace_exp.config.backbone import LoraConfig, PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.encoder.cache import RationaleCache
from grace_exp.policy.load_backbone import Backbone, _with_lora
from grace_exp.policy.policy import Policy
from grace_exp.rollout.transformers_engine import TransformersEngine

PROMPT = PromptConfig(name="p", system="Read.", max_tokens=64)


class Other(TransformersEngine):
    """Another engine."""


def encoder(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: PoolingConfig | None = None,
    ends: tuple[int, ...] = (2,),
    engine: type[TransformersEngine] = TransformersEngine,
    prompt: PromptConfig = PROMPT,
) -> GraceEncoder:
    policy = Policy(model, pooling or PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)
    made = engine(model, end_token_ids=list(ends), pad_token_id=0, batch_tokens=10_000)
    backbone = Backbone(model, tokenizer, ends, 0)
    cache = RationaleCache(folder)
    return GraceEncoder(backbone, policy=policy, engine=made, prompt=prompt, max_tokens=5, cache=cache)


def changed_weight(model: Any) -> Any:
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    return model


def other_attention(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


def other_rope(model: Any) -> Any:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5000.0}
    return model


def with_adapters(model: Any) -> Any:
    from grace_exp.config.backbone import BackboneConfig

    return _with_lora(model, BackboneConfig(name="b", source="tiny", lora=LoraConfig(rank=2)))


MODELS: dict[str, Callable[[Any], Any]] = {
    "a weight": changed_weight,
    "number type": lambda model: model.to(torch.bfloat16),
    "attention": other_attention,
    "configuration": other_rope,
    "adapters": with_adapters,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pooling method": {"pooling": PoolingConfig(method="last")},
    "pooling layer": {"pooling": PoolingConfig(layer=-2)},
    "pooling region": {"pooling": PoolingConfig(region="rationale")},
    "end tokens": {"ends": (2, 7)},
    "engine": {"engine": Other},
    "system prompt": {"prompt": replace(PROMPT, system="Write.")},
    "instruction": {"prompt": replace(PROMPT, instructions=InstructionsConfig(query="A question."))},
    "prompt length": {"prompt": replace(PROMPT, max_tokens=30)},
}
CALLS: dict[str, dict[str, Any]] = {
    "mode": {"mode": "prompt_only"},
    "budget": {"max_tokens": 4},
    "temperature": {"temperature": 0.7},
    "prompt": {"prompt": "Answer."},
}
SAMPLED: dict[str, dict[str, Any]] = {"seed": {"seed": 1}, "samples": {"samples": 2}, "role": {"role": "document"}}
TEXT = "A rather long text about nothing much, of more than a few tokens."


def kept(one: GraceEncoder) -> int:
    """Entries in its cache."""
    assert one.cache is not None
    with one.cache._connection() as connection:
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])


def assert_unknown(first: GraceEncoder, second: GraceEncoder, before: dict[str, Any], after: dict[str, Any]) -> None:
    first.encode(TEXT, **before)
    entries = kept(first)
    first.encode(TEXT, **before)
    assert kept(first) == entries  # it knows its own
    second.encode(TEXT, **after)
    assert kept(second) > entries


@pytest.mark.parametrize("what", MODELS)
def test_another_model(what: str, shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    other = MODELS[what](copy.deepcopy(shared_model))
    assert_unknown(encoder(tmp_path, shared_model, tokenizer), encoder(tmp_path, other, tokenizer), {}, {})


@pytest.mark.parametrize("what", SETTINGS)
def test_another_setting(what: str, shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    other = encoder(tmp_path, shared_model, tokenizer, **SETTINGS[what])
    assert_unknown(encoder(tmp_path, shared_model, tokenizer), other, {}, {})


@pytest.mark.parametrize("what", CALLS)
def test_another_call(what: str, shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    one = encoder(tmp_path, shared_model, tokenizer)
    assert_unknown(one, one, {}, CALLS[what])


@pytest.mark.parametrize("what", SAMPLED)
def test_another_draw(what: str, shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    one = encoder(tmp_path, shared_model, tokenizer)
    assert_unknown(one, one, {"temperature": 1.0}, {"temperature": 1.0, **SAMPLED[what]})


def test_another_autocast(shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    one = encoder(tmp_path, shared_model, tokenizer)
    one.encode(TEXT)
    entries = kept(one)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one.encode(TEXT)
    assert kept(one) > entries


def test_the_number_type_of_an_engine_of_its_own_and_the_device_are_part_of_the_key(
    shared_model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    one = encoder(tmp_path, shared_model, tokenizer)
    before = one.computed_with()
    assert " on cpu " in before and "float32" in before
    one.engine.dtype = torch.bfloat16  # type: ignore[attr-defined]
    assert one.computed_with() != before
