from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.config.compose import compose_config
from grace_exp.config.engine_use import sequences_at_once
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm import build
from grace_exp.rollout.vllm.memory import (
    BATCHED_TOKENS,
    COMMUNICATION,
    CONTEXT,
    CUDA_GRAPHS,
    GIB,
    ModelShape,
    available_bytes,
    device_overhead,
    model_shape,
    plan_memory,
    policy_bytes,
    weight_copies,
)

EMBED = ["job=embed", "job.input=mine.txt", "job.output=mine.npy"]

# Qwen2.5-1.5B-Instruct: its config.json.
QWEN = ModelShape(1_543_714_304, 1_543_714_304, 28, 2, 128, 1536, 8960, 151_936)

TRAINING = 16 * QWEN.parameters
"""Bytes: float32 weights, gradients and two moments."""


def test_the_shape_is_read_off_a_model(shared_model: PreTrainedModel) -> None:
    shape = model_shape(shared_model)
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.hidden, shape.vocabulary) == (2, 1, 32, 64, 1024)
    # Embedding (tied with the head), per layer q, k, v with biases, o, gate, up, down and two norms, the last norm.
    layer = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert shape.parameters == shape.trained == 1024 * 64 + 2 * layer + 64


def test_adapters_are_trained_and_not_counted_as_weights(model: PreTrainedModel) -> None:
    from peft import LoraConfig, get_peft_model

    plain = model_shape(model).parameters
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    shape = model_shape(adapted)
    assert shape.parameters == plain
    assert shape.trained == 2 * (4 * 64 + 64 * 4)


def test_qwen_beside_its_training_on_an_80_gb_gpu() -> None:
    plan = plan_memory(
        QWEN,
        value_bytes=2,
        max_model_len=3072,
        max_sequences=256,
        available=80 * GIB,
        policy=TRAINING,
    )
    assert plan.weights == 2 * QWEN.parameters
    assert plan.sequence == 2 * 28 * 2 * 128 * 2 * 3072  # keys and values x layers x heads x width x bytes x tokens
    assert plan.kv_cache == 256 * plan.sequence  # 21 GiB: all fit
    assert plan.policy == 16 * QWEN.parameters
    assert plan.activations > BATCHED_TOKENS * QWEN.hidden * 2
    assert plan.engine + plan.policy < plan.available


def test_on_a_cpu_the_weights_are_there_twice() -> None:
    sizes = {"value_bytes": 4, "max_model_len": 128, "max_sequences": 8, "available": 64 * GIB}
    once, twice = (plan_memory(QWEN, copies=weight_copies(device), **sizes).weights for device in ("cuda", "cpu"))
    assert (once, twice) == (4 * QWEN.parameters, 8 * QWEN.parameters)


def test_the_cache_takes_what_is_left_where_not_all_sequences_fit() -> None:
    plan = plan_memory(QWEN, value_bytes=2, max_model_len=3072, max_sequences=256, available=12 * GIB)
    rest = 12 * GIB - plan.weights - plan.activations
    assert plan.kv_cache == int(0.9 * rest) < 256 * plan.sequence


def test_devices_that_share_an_engine_divide_weights_and_cache() -> None:
    one, two = (
        plan_memory(
            QWEN, value_bytes=2, max_model_len=3072, max_sequences=64, available=80 * GIB, tensor_parallel=devices
        )
        for devices in (1, 2)
    )
    assert two.weights == one.weights // 2
    assert two.sequence == one.sequence // 2


def test_an_engine_that_does_not_fit_beside_its_policy_is_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"one sequence of 3072 tokens takes 0\.082 GiB .* = .* of 24\.00 GiB"):
        plan_memory(
            QWEN,
            value_bytes=2,
            max_model_len=3072,
            max_sequences=256,
            available=24 * GIB,
            policy=TRAINING,
        )


@pytest.mark.parametrize(("kib", "message"), [(1, "one sequence"), (20 << 20, "Lower rollout.vllm.kv_cache_gib=20")])
def test_a_configured_cache_must_hold_a_sequence_and_fit(kib: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_memory(QWEN, value_bytes=2, max_model_len=3072, max_sequences=8, available=16 * GIB, kv_cache=kib * 1024)


def test_a_policy_in_training_takes_gradients_and_moments_and_weights_that_are_still_to_come(
    shared_model: PreTrainedModel,
) -> None:
    size = 4 * model_shape(shared_model).parameters
    assert policy_bytes(shared_model, "cuda", trains=True) == 4 * size
    assert policy_bytes(shared_model, "cpu", trains=True) == 3 * size  # its weights are there already
    assert policy_bytes(shared_model, "cuda", trains=True, shards=4) == size
    assert available_bytes(torch.device("cpu")) > 0


def test_an_evaluation_holds_weights_alone_in_the_type_they_have(model: PreTrainedModel) -> None:
    size = 4 * model_shape(model).parameters
    assert policy_bytes(model, "cuda", trains=False) == size
    assert policy_bytes(model.bfloat16(), "cuda", trains=False) == size // 2
    assert policy_bytes(model, "cpu", trains=False) == 0


def test_graphs_context_and_communication_are_part_of_the_sum_on_gpus() -> None:
    assert device_overhead("cpu", processes=4, eager=True) == 0
    one, four = (device_overhead("cuda", processes=processes, eager=False) for processes in (1, 4))
    assert one == CONTEXT + CUDA_GRAPHS and four == one + COMMUNICATION
    assert device_overhead("cuda", processes=1, eager=True) == CONTEXT
    sizes = {"value_bytes": 2, "max_model_len": 3072, "max_sequences": 256, "available": 12 * GIB}
    without, plan = plan_memory(QWEN, **sizes), plan_memory(QWEN, **sizes, overhead=four)
    assert without.kv_cache - plan.kv_cache == pytest.approx(0.9 * four, rel=1e-6)
    assert "CUDA 3.00" in str(plan) and plan.available == 12 * GIB


def composed(*overrides: str) -> GraceConfig:
    return compose_config(list(overrides), Path("run"))


@pytest.mark.parametrize(
    ("overrides", "sequences"),
    [
        (["+experiment=qwen_sup"], 64 // 4 * (8 + 1 + 1)),  # K, the query's, the negative's
        (["+experiment=qwen_unsup"], 64 // 4 * (8 + 1)),
        (["+experiment=qwen_sup", "rollout.vllm.tensor_parallel=2"], 256),  # 320 are asked for
        (["+experiment=qwen_sup", "rollout.policy_role=both", "objective=remax"], 256),
        (["+experiment=qwen_contrastive"], 256),  # held-out texts only, any number of them
        (["+experiment=demo_tiny", "rollout=vllm"], 4 * (4 + 1 + 1)),
        (["+experiment=demo_tiny", "rollout=vllm", "evaluation=demo"], 64),  # its held-out texts are more
        ([*EMBED, "rollout=vllm", "job.encode.batch_size=100"], 100),
        ([*EMBED, "rollout=vllm", "job.encode.batch_size=512"], 256),
        (["job=evaluate", "evaluation=demo", "rollout=vllm"], 256),
    ],
)
def test_an_engine_has_room_for_the_sequences_it_is_asked_for(overrides: list[str], sequences: int) -> None:
    assert sequences_at_once(composed(*overrides)) == sequences


def test_an_engine_for_an_evaluation_is_planned_without_gradients_and_moments(
    shared_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "available_bytes", lambda device: 4 * GIB)
    size = 4 * model_shape(shared_model).parameters
    plans = [
        build._memory(composed("+experiment=demo_tiny", "rollout=vllm", *job), shared_model, "cuda")
        for job in ([], ["job=evaluate", "evaluation=demo"])
    ]
    assert [plan.policy for plan in plans] == [4 * size, size]
    assert plans[0].kv_cache == 24 * plans[0].sequence  # what a step asks for
