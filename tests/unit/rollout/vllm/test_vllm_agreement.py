from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.errors import GraceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.agreement import probe


@pytest.mark.parametrize("max_model_len", [4096, 10])
def test_an_engine_with_the_policys_weights_passes(model: PreTrainedModel, engine: Any, max_model_len: int) -> None:
    model.train()
    writer = engine(model, end_token_ids=())
    assert probe(writer.generate, model, max_model_len=max_model_len, dtype=torch.float32) < 1e-5
    assert model.training


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_an_engine_with_other_weights_is_refused(model: PreTrainedModel, engine: Any, wrong: float) -> None:
    writer = engine(model, end_token_ids=())

    def generate(requests: Sequence[Request]) -> list[list[Completion]]:
        ((found,),) = writer.generate(requests)
        return [[Completion(found.token_ids, tuple(value + wrong for value in found.logprobs), "length")]]

    with pytest.raises(GraceError, match="differ from the policy's by"):
        probe(generate, model, max_model_len=4096, dtype=torch.float32)
