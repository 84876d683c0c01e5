"""Encoders around the tiny model."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.prompt import InstructionsConfig, PromptConfig
from grace_exp.policy.load_backbone import Backbone
from grace_exp.policy.policy import Policy
from grace_exp.rollout.transformers_engine import TransformersEngine


@pytest.fixture
def make_encoder(shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[..., GraceEncoder]:
    """Makes an encoder of the tiny model, with rationales of at most 8 tokens."""
    instructions = InstructionsConfig(query="A question.", positive="A text.")
    prompt = PromptConfig(name="p", system="Read.", instructions=instructions, max_tokens=128)

    def make_encoder(pooling: PoolingConfig | None = None, **settings: Any) -> GraceEncoder:
        policy = Policy(shared_model, pooling or PoolingConfig(), HardwareConfig(name="cpu"), pad_token_id=0)
        engine = TransformersEngine(shared_model, end_token_ids=[2], pad_token_id=0, batch_tokens=10_000)
        backbone = Backbone(shared_model, tokenizer, (2,), 0)
        return GraceEncoder(backbone, policy=policy, engine=engine, prompt=prompt, max_tokens=8, **settings)

    return make_encoder
