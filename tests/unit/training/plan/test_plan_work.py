"""Tokens, FLOPs and hours of a step."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from grace_exp.config.compose import compose_config
from grace_exp.config.hardware import HardwareConfig
from grace_exp.config.root import GraceConfig
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.device_speed import device_speed
from grace_exp.training.plan.dimensions import dimensions_of, planned_dimensions
from grace_exp.training.plan.run_plan import plan_run
from grace_exp.training.plan.step_work import forward_flops, step_work


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    plain = "backbone.gradient_checkpointing=false"
    return compose_config(["+experiment=qwen_sup", plain, *overrides], Path("run"))


def test_flops_are_those_that_torch_counts() -> None:
    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model, tokens = Qwen2ForCausalLM(config), 50
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long))
    dimensions = dimensions_of(config, None)
    assert dimensions is not None
    # Eager attention computes the whole square; a causal kernel half of it.
    assert forward_flops(dimensions, tokens, tokens**2, tokens) == pytest.approx(counted.get_total_flops(), rel=1e-3)


def test_a_step_writes_a_group_an_anchor_and_the_negatives_of_each_instance() -> None:
    config = composed("job.plan.prompt_tokens=100", "job.plan.rationale_tokens=300", "hardware.packing=false")
    work = step_work(config, planned_dimensions(config.backbone))
    assert work["rollout"].sequences == work["score"].sequences == 64 * (8 + 1 + 1)
    assert work["update"].sequences == 64 * 8
    assert work["rollout"].tokens == 64 * (3 * 100 + 10 * 300)  # a prompt is read once for all its rationales
    assert work["update"].tokens == 64 * 8 * 400
    packed = step_work(composed("hardware.packing=true"), planned_dimensions(config.backbone))
    assert packed["update"].tokens == 64 * (8 * 500 + 160)


def test_a_trained_token_takes_three_forwards_and_with_adapters_two() -> None:
    full, lora = composed("hardware.packing=false"), composed("backbone.lora={rank: 16}", "hardware.packing=false")
    works = [step_work(config, planned_dimensions(config.backbone)) for config in (full, lora)]
    assert works[0]["update"].flops == pytest.approx(works[1]["update"].flops * 3 / 2)


def test_baselines_without_rationales_write_none() -> None:
    config = compose_config(["+experiment=qwen_contrastive"], Path("run"))
    assert set(step_work(config, planned_dimensions(config.backbone))) == {"score", "update"}


def test_hours_are_those_of_the_slowest_phase_and_the_stated_efficiency() -> None:
    config = composed("job.plan.mfu=0.5")
    plan = plan_run(config, planned_dimensions(config.backbone), 80 * GIB)
    assert plan.speed is not None and plan.hours is not None
    assert plan.speed.name == "H100"
    assert plan.seconds["update"] == pytest.approx(plan.work["update"].flops / (0.5 * 989e12 * 4))
    assert plan.hours == pytest.approx(1000 * sum(plan.seconds.values()) / 3600)
    slow = plan_run(replace(config, rollout=replace(config.rollout, engine="transformers")), plan.settings.dimensions,
                    80 * GIB)  # fmt: skip
    assert slow.seconds["rollout"] > 10 * plan.seconds["rollout"]


def test_peaks_are_taken_by_name_by_memory_or_as_set() -> None:
    gpu = HardwareConfig(name="x", accelerator="gpu")
    assert device_speed(gpu, 79.6, "NVIDIA H100 80GB HBM3").tflops == 989  # type: ignore[union-attr]
    assert device_speed(gpu, 23.6, "NVIDIA A10G").name == "A10"  # type: ignore[union-attr]
    assert device_speed(gpu, 141).name == "H200"  # type: ignore[union-attr]
    assert device_speed(gpu, 24, "Unheard of") is None
    assert device_speed(HardwareConfig(name="cpu"), 23) is None
    own = device_speed(replace(gpu, peak_tflops=10, memory_bandwidth=100), 24, "Unheard of")
    assert own is not None
    assert (own.tflops, own.bandwidth) == (10, 100)
