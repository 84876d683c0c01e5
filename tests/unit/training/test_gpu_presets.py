"""The presets for one GPU hold what their comments say, by the arithmetic of job=plan."""

from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.dimensions import planned_dimensions
from grace_exp.training.plan.run_plan import RunPlan, plan_run, planned_memory

ALL_WEIGHTS = ["backbone.lora=null", "optim=adamw"]


def planned(hardware: str, backbone: str, *overrides: str) -> RunPlan:
    config = compose_config(
        ["+experiment=sup", f"backbone={backbone}", f"hardware={hardware}", *overrides], Path("run")
    )
    assert (config.hardware.name, config.hardware.devices, config.rollout.engine) == (hardware, 1, "vllm")
    return plan_run(config, planned_dimensions(config.backbone), planned_memory(config, None))


@pytest.mark.parametrize(
    ("hardware", "backbone", "overrides", "fits"),
    [
        ("gpu24", "qwen25_1_5b", [], True),
        ("gpu24", "qwen25_1_5b", ALL_WEIGHTS, False),
        ("gpu24", "qwen25_3b", [], True),
        ("gpu24", "llama32_3b", [], True),
        ("gpu24", "qwen3_4b", [], False),
        ("gpu48", "qwen25_1_5b", ALL_WEIGHTS, True),
        ("gpu48", "qwen25_3b", ALL_WEIGHTS, False),
        ("gpu48", "llama32_3b", [], True),
        ("gpu48", "qwen3_4b", [], True),
        ("gpu80", "qwen25_3b", [], True),
        ("gpu80", "llama32_3b", [], True),
        ("gpu80", "qwen3_4b", [], True),
    ],
)
def test_a_preset_holds_the_backbones_that_it_names(
    hardware: str, backbone: str, overrides: list[str], fits: bool
) -> None:
    plan = planned(hardware, backbone, *overrides)
    assert plan.memory.fits is fits, {name: size / GIB for name, size in plan.memory.phases["rollout"].items()}


@pytest.mark.parametrize(
    ("hardware", "backbone", "phase", "gib"),
    [
        ("gpu24", "qwen25_3b", "rollout", 22.4),
        ("gpu24", "qwen25_3b", "update", 22.4),
        ("gpu48", "qwen3_4b", "rollout", 37.1),
        ("gpu80", "qwen25_3b", "rollout", 67.5),
        ("gpu80", "qwen3_4b", "rollout", 75.3),
        ("gpu80", "qwen3_4b", "update", 75.1),
    ],
)
def test_the_sums_in_the_comments_are_the_plans(hardware: str, backbone: str, phase: str, gib: float) -> None:
    assert planned(hardware, backbone).memory.total(phase) / GIB == pytest.approx(gib, abs=0.3)
