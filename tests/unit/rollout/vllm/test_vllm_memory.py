import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.memory import (
    BATCHED_TOKENS,
    GIB,
    ModelShape,
    available_bytes,
    model_shape,
    plan_memory,
    policy_bytes,
    weight_copies,
)

# Qwen2.5-1.5B-Instruct: its config.json.
QWEN = ModelShape(1_543_714_304, 1_543_714_304, 28, 2, 128, 1536, 8960, 151_936)


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
        policy=policy_bytes(QWEN, "cuda"),
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
            policy=policy_bytes(QWEN, "cuda"),
        )


@pytest.mark.parametrize(("kib", "message"), [(1, "one sequence"), (20 << 20, "Lower rollout.vllm.kv_cache_gib=20")])
def test_a_configured_cache_must_hold_a_sequence_and_fit(kib: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_memory(QWEN, value_bytes=2, max_model_len=3072, max_sequences=8, available=16 * GIB, kv_cache=kib * 1024)


def test_on_a_cpu_the_policys_weights_are_there_already() -> None:
    assert policy_bytes(QWEN, "cuda") - policy_bytes(QWEN, "cpu") == 4 * QWEN.parameters
    assert available_bytes(torch.device("cpu")) > 0
