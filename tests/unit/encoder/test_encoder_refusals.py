"""What `encode` refuses, before anything is written or kept."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.encoder.cache import RationaleCache
from grace_exp.errors import ConfigError, DataError
from grace_exp.policy.load_backbone import Backbone
from grace_exp.policy.policy import Policy
from grace_exp.reward.inputs import EmbeddingError
from grace_exp.rollout.transformers_engine import TransformersEngine


def encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> GraceEncoder:
    policy = Policy(model, PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)
    engine = TransformersEngine(model, end_token_ids=[2], pad_token_id=0, batch_tokens=10_000)
    prompt = PromptConfig(name="p", system="Read.", max_tokens=64)
    backbone = Backbone(model, tokenizer, (2,), 0)
    return GraceEncoder(backbone, policy=policy, engine=engine, prompt=prompt, max_tokens=4, name="mine", **settings)


@pytest.fixture
def tiny(shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GraceEncoder:
    return encoder(shared_model, tokenizer)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": 1}, "encode: texts is an object; expected a text or a list of texts"),
        ({"a", "b"}, "encode: texts is a set; expected"),
        (b"a", "encode: texts is a bytes; expected"),
        (3, "encode: texts is the number 3; expected"),
        (["a", "b\ud800"], "encode: texts[1]: the lone surrogate \\ud800 at character 2 is not UTF-8"),
        ("\udcff", "encode: texts[0]: byte 0xff at character 1 is not UTF-8"),
    ],
    ids=["dict", "set", "bytes", "number", "surrogate", "byte"],
)
def test_what_is_no_text_is_named(tiny: GraceEncoder, texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        tiny.encode(texts)


@pytest.mark.parametrize(
    "settings",
    [{"truncate_dim": 0}, {"truncate_dim": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}],
    ids=lambda settings: str(settings),
)
def test_a_setting_out_of_range_is_named(tiny: GraceEncoder, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"encode: {name}="):
        tiny.encode("a", **settings)


def test_more_tokens_than_the_model_has_positions_are_refused(tiny: GraceEncoder) -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=4033 = 4097 tokens, but mine reads 4096"):
        tiny.encode("a", max_tokens=4033)
    assert np.isfinite(np.asarray(tiny.encode("a", max_tokens=1))).all()


def test_vectors_of_broken_weights_are_refused_and_not_kept(
    shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(shared_model)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    broken = encoder(model, tokenizer, cache=RationaleCache(tmp_path), mode="prompt_only")
    for _ in range(2):  # the second time the cache could answer
        with pytest.raises(EmbeddingError, match="holds nan or inf"):
            broken.encode(["a", "b"])
