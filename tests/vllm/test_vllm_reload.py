"""vLLM's layer-by-layer reload, which GPUs use for new weights, tested on its CPU build."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel, Qwen2ForCausalLM

from grace_exp.config.vllm import VllmConfig
from grace_exp.rollout.protocol import Request

TOLERANCE = 1e-4


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    config = type(model.config)(**(model.config.to_dict() | {"tie_word_embeddings": False}))
    untied = Qwen2ForCausalLM(config).eval()
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    return untied


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "head of its own"])
def test_a_layer_by_layer_reload_takes_over_every_weight(
    model: PreTrainedModel,
    make: Callable[..., Any],
    requests: list[Request],
    worst: Any,
    five_updates: Any,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
) -> None:
    from vllm.model_executor.model_loader.reload import layerwise

    from grace_exp.rollout.vllm.worker import NearbyWeights

    calls: list[str] = []
    finalize = layerwise.finalize_layerwise_reload

    def recorded(*arguments: Any, **keywords: Any) -> None:
        calls.append("finalize")
        finalize(*arguments, **keywords)

    monkeypatch.setattr("vllm.model_executor.model_loader.reload.finalize_layerwise_reload", recorded)
    monkeypatch.setattr(NearbyWeights, "_by_layer", True)
    policy = model if tied else _untied(model)
    engine = make(policy, VllmConfig(max_sequences=16))
    try:
        assert worst(policy, requests, engine.generate(requests)) < TOLERANCE
        for _ in range(2):
            five_updates(policy)
            engine.sync(policy)
            assert worst(policy, requests, engine.generate(requests)) < TOLERANCE
    finally:
        engine.close()
    assert calls == ["finalize"] * 3
