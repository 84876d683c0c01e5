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
from grace_exp.training.plan.step_work import Work, forward_flops, step_work


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


LENGTHS = ("job.plan.prompt_tokens=100", "job.plan.rationale_tokens=300", "hardware.packing=false")
EXACT = (
    "reward=infonce",
    "objective=exact",
    "objective.advantage_scale=none",
    "objective.pathwise.parts_every_n_steps=null",
)
ONE_UPDATE = "objective.mini_batch_size=64"


def worked(*overrides: str) -> dict[str, Work]:
    config = composed(*LENGTHS, *overrides)
    return step_work(config, planned_dimensions(config.backbone))


def test_the_pathwise_gradient_has_passes_of_anchors_and_negatives() -> None:
    """docs/exact_gradient.md: one forward and backward for each; U updates embed the step U - 1 times more."""
    plain, exact = worked("reward=infonce", ONE_UPDATE), worked(*EXACT, ONE_UPDATE)
    assert exact["rollout"] == plain["rollout"] and exact["score"] == plain["score"]
    assert exact["update"].sequences == 64 * (8 + 2)
    assert exact["update"].tokens - plain["update"].tokens == 64 * 2 * 400
    assert exact["update"].flops > plain["update"].flops
    trained_alone = worked(*EXACT, ONE_UPDATE, "objective.pathwise.anchors=false")
    assert trained_alone["update"] == plain["update"]
    four = worked(*EXACT)
    assert four["update"].sequences == 64 * (8 + 2) * 4
    dropout = worked(*EXACT, ONE_UPDATE, "backbone.lora={rank: 16, dropout: 0.1}")
    assert dropout["update"].sequences == 2 * exact["update"].sequences
    borrowed = worked(*EXACT, ONE_UPDATE, "reward=faithful")
    assert borrowed["update"].sequences == 64 * (2 * 8 + 2)
    assert borrowed["score"].sequences == 64 * (2 * 8 + 2) and borrowed["rollout"] == exact["rollout"]


def test_kept_forwards_are_not_computed_again_and_a_measured_step_has_a_second_backward() -> None:
    exact, kept = (worked(*EXACT, ONE_UPDATE, f"hardware.keep_forward={keep}")["update"] for keep in ("false", "true"))
    assert kept.tokens == exact.tokens and kept.flops == pytest.approx(exact.flops * 2 / 3)
    measured = worked(*EXACT, ONE_UPDATE, "objective.pathwise.parts_every_n_steps=1")["update"]
    group = worked("reward=infonce", ONE_UPDATE)["update"].flops / 3
    assert measured.flops - exact.flops == pytest.approx(2 * group)


def test_texts_of_the_other_side_may_have_no_rationales() -> None:
    bare = ("rollout.policy_role=query", "rollout.anchor_rationales=false")
    work = worked("reward=infonce", *bare)
    assert work["rollout"].sequences == 64 * 8 and work["score"].sequences == 64 * (8 + 2)
    assert work["score"].tokens == 64 * (8 * 400 + 2 * 100)
    documents = worked("reward=infonce", "rollout.anchor_rationales=false")
    assert documents["score"].tokens == 64 * (9 * 400 + 100)
    contrastive = worked("method=contrastive_on_rationales", *bare)
    assert contrastive["rollout"].sequences == 64 and contrastive["update"].tokens == 64 * (400 + 2 * 100)


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
