"""Memory by part: closed forms, the four backbones, and the results of `auto` and of the advice."""

import functools
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from grace_exp.config.backbone import BackboneConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.device_memory import DeviceMemory, device_memory
from grace_exp.training.plan.dimensions import dimensions_of, planned_dimensions
from grace_exp.training.plan.plan_settings import PlanSettings, plan_settings
from grace_exp.training.plan.run_plan import plan_run, planned_memory, with_planned_budgets

# From the models' cards: parameters.
PARAMETERS = {
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "llama32_3b": 3_212_749_824,
    "qwen3_4b": 4_022_468_096,
    "smollm2": 134_515_008,
}


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    plain = "backbone.gradient_checkpointing=false"
    return compose_config(["+experiment=qwen_sup", plain, *overrides], Path("run"))


def settings(*overrides: str, memory: float = 80, **changed: Any) -> PlanSettings:
    config = composed(*overrides)
    return replace(plan_settings(config, planned_dimensions(config.backbone), int(memory * GIB)), **changed)


def planned(*overrides: str, memory: float = 80, **changed: Any) -> DeviceMemory:
    return device_memory(settings(*overrides, memory=memory, **changed))


@pytest.mark.parametrize(("backbone", "parameters"), PARAMETERS.items())
def test_a_backbones_shape_gives_its_number_of_parameters(backbone: str, parameters: int) -> None:
    config = composed(f"backbone={backbone}", "backbone.lora=null")
    assert planned_dimensions(config.backbone).parameters == parameters


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("qwen25_1_5b", Qwen2Config), ("qwen25_3b", Qwen2Config), ("llama32_3b", LlamaConfig), ("qwen3_4b", Qwen3Config)],
)
def test_a_model_built_from_a_shape_has_as_many_parameters(backbone: str, kind: Any) -> None:
    dimensions = planned_dimensions(composed(f"backbone={backbone}").backbone)
    shape = dimensions.shape
    config = kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == dimensions.parameters
    assert dimensions_of(config, None) == replace(dimensions, shape=replace(shape, path=None))


def test_kept_forwards_and_a_second_gradient_have_parts() -> None:
    """The pathwise gradient keeps those of anchors and negatives too; a step that measures holds one gradient more."""
    exact = ["reward=infonce", "objective=exact", "objective.advantage_scale=none", "objective.mini_batch_size=64"]
    keep = "hardware.keep_forward=true"
    lengths = ["job.plan.prompt_tokens=100", "job.plan.rationale_tokens=300", "hardware.packing=false"]
    plain = planned("reward=infonce", "objective.mini_batch_size=64", keep, *lengths).phases["update"]
    both = planned(*exact, keep, *lengths).phases["update"]
    assert both["kept forwards"] / plain["kept forwards"] == pytest.approx((8 + 2) / 8, rel=0.01)
    assert both["policy gradient apart"] == 4 * PARAMETERS["qwen25_1_5b"] and "policy gradient apart" not in plain
    assert "kept forwards" not in planned(*exact).phases["update"]
    assert "policy gradient apart" not in planned(*exact, "objective.policy_gradient_weight=0").phases["update"]


def test_full_training_holds_sixteen_bytes_a_parameter() -> None:
    parts, parameters = planned().phases["update"], PARAMETERS["qwen25_1_5b"]
    assert (parts["weights"], parts["gradients"], parts["moments"]) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert parts["context"] == 2 * GIB  # CUDA, and NCCL for four processes


def test_shards_divide_what_is_held_and_gather_two_layers() -> None:
    whole, shared = planned().phases["update"], planned(strategy="fsdp2").phases["update"]
    for part in ("weights", "gradients", "moments"):
        assert shared[part] == whole[part] // 4
    dimensions = settings().dimensions
    assert shared["gathered weights"] == 8 * (2 * dimensions.layer + dimensions.embedding + dimensions.shape.hidden)


def test_adapters_leave_gradients_and_moments_small() -> None:
    parts = planned("backbone.lora={rank: 16, alpha: 32}").phases["update"]
    assert parts["moments"] < 0.2 * GIB
    assert parts["weights"] == pytest.approx(4 * PARAMETERS["qwen25_1_5b"], rel=0.02)


def test_an_engine_that_sleeps_is_there_only_while_it_writes() -> None:
    sleeping, awake = planned().phases, planned("rollout.vllm.sleep=false").phases
    assert "engine weights" in sleeping["rollout"]
    assert "engine weights" not in sleeping["update"]
    assert awake["update"]["engine cache"] == awake["rollout"]["engine cache"]


def test_a_reference_and_a_moving_average_are_further_copies() -> None:
    copy = 4 * PARAMETERS["qwen25_1_5b"]
    assert planned("objective.kl.coefficient=0.1").phases["update"]["further copies"] == copy
    assert planned("reward.encoder.kind=ema").phases["update"]["further copies"] == copy
    both = planned("objective.kl.coefficient=0.1", "reward.encoder.kind=ema")
    assert both.phases["update"]["further copies"] == 2 * copy


def test_checkpointing_keeps_the_residual_stream_of_each_layer() -> None:
    full = settings(checkpointing="full", train_tokens=8192)
    parts = device_memory(full).phases["update"]
    # Float32, one a layer and three around them.
    assert parts["activations"] == 4 * 1536 * 8192 * (28 + 3)
    assert parts["activations"] < device_memory(replace(full, checkpointing="off")).phases["update"]["activations"] / 10


def test_auto_budgets_fill_what_is_left_and_grow_with_memory() -> None:
    budgets = [planned(memory=memory).train_tokens for memory in (50, 60, 70, 141)]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[1] < budgets[2]
    assert budgets[-1] == 16384
    tight = planned(memory=60)
    assert tight.fits
    more = replace(settings(memory=60), train_tokens=tight.train_tokens + 1024)
    assert device_memory(more).total("update") > tight.usable


def test_a_budget_holds_the_longest_row_even_where_it_does_not_fit() -> None:
    found = planned(memory=24)
    assert not found.fits
    assert found.train_tokens == settings().longest_row


def test_a_budget_that_is_set_stays() -> None:
    config = composed("hardware.train_tokens=5000")
    plan = plan_run(config, planned_dimensions(config.backbone), 80 * GIB)
    hardware = with_planned_budgets(config, plan).hardware
    assert hardware.train_tokens == 5000
    assert isinstance(hardware.score_tokens, int)


@pytest.mark.parametrize("memory", [24, 48])
def test_advice_is_what_makes_it_fit(memory: int) -> None:
    config = composed("backbone=qwen3_4b")
    plan = plan_run(config, planned_dimensions(config.backbone), memory * GIB)
    assert not plan.memory.fits
    assert plan.hours is None
    assert plan.advice
    for line in plan.advice:
        changed = composed("backbone=qwen3_4b", *shlex.split(line.replace("hardware.strategy=fsdp2", "")))
        variant = plan_settings(changed, planned_dimensions(changed.backbone), memory * GIB)
        assert device_memory(replace(variant, strategy="fsdp2" if "fsdp2" in line else "ddp")).fits, line


def test_no_gpu_and_no_figure_is_refused_with_the_setting_that_says_it() -> None:
    config = composed("hardware.memory_gib=null")
    with pytest.raises(ConfigError, match=r"hardware\.memory_gib=80"):
        planned_memory(config, None)
    assert planned_memory(config, 7) == 7
    assert planned_memory(composed(), 79 * GIB) == 79 * GIB  # what there is, not what was hoped for
    assert planned_memory(composed(), None) == 80 * GIB


def test_the_shape_of_another_model_is_not_taken(tmp_path: Path) -> None:
    backbone = composed().backbone
    with pytest.raises(MissingResourceError, match=r"that of Qwen/Qwen2.5-1.5B-Instruct"):
        planned_dimensions(replace(backbone, path=str(tmp_path / "none")))
    Qwen2Config(hidden_size=128, num_attention_heads=4, num_key_value_heads=2).save_pretrained(tmp_path)
    read = planned_dimensions(replace(backbone, path=str(tmp_path)))
    assert read.shape.hidden == 128
    assert planned_dimensions(BackboneConfig(name="tiny", source="tiny")).parameters > 100_000


ONE_UPDATE = ("objective.mini_batch_size=64", "prompt.max_tokens=64", "rollout.max_tokens=16")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ((), True),
        (("objective.mini_batch_size=16",), False),
        (("+backbone.lora={rank: 4, alpha: 8, dropout: 0.1}",), False),
        (("objective.dynamic_sampling={max_rounds: 1}",), False),
        (("method=rejection_sft",), False),
        (("hardware.keep_forward=false",), False),
        (("hardware.keep_forward=true",), True),
        (("method=contrastive",), True),
    ],
    ids=str,
)
def test_forwards_are_kept_where_one_update_reads_what_was_scored(changes: tuple[str, ...], kept: bool) -> None:
    config = composed(*ONE_UPDATE, *changes)
    plan = plan_run(config, planned_dimensions(config.backbone), 80 * GIB)
    assert plan.memory.keeps_forward is kept
    assert with_planned_budgets(config, plan).hardware.keep_forward is kept


def test_memory_decides_whether_forwards_are_kept() -> None:
    small = (*ONE_UPDATE, "hardware.train_tokens=256", "hardware.max_row_tokens=256")
    one, other = planned(*small, "hardware.keep_forward=true"), planned(*small, "hardware.keep_forward=false")
    more = one.total("update") - other.total("update")
    assert more > 0
    enough, less = (one.total("update") + more / 2) / 0.95 / GIB, (one.total("update") - more / 2) / 0.95 / GIB
    assert planned(*small, memory=enough).keeps_forward
    assert not planned(*small, memory=less).keeps_forward


def test_what_is_kept_is_the_groups_tokens() -> None:
    packed, padded = (settings(*ONE_UPDATE, f"hardware.packing={packing}") for packing in ("true", "false"))
    instances, k = 64 // packed.processes, 8
    assert packed.longest_kept_tokens == instances * (64 + k * 16)
    assert padded.longest_kept_tokens == instances * k * (64 + 16)
