"""`job=plan` without GPU, hub, data or weights prints, writes and returns its figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.preflight import check_machine
from grace_exp.data.prompts import Prompt
from grace_exp.jobs import run
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.tiny import tiny_model
from grace_exp.training.plan.dimensions import dimensions_of
from grace_exp.training.plan.run_plan import plan_run
from grace_exp.training.plan.usage import Usage


def test_a_plan_needs_no_gpu_no_hub_and_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose_config(["+experiment=qwen3_4b_sup", "job=plan"], tmp_path / "run")
    check_machine(config)
    figures = run(config)
    assert figures["plan/fits"] in (0, 1)
    written = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    phases = written["memory_gib"]
    assert set(phases) == {"rollout", "score", "update"}
    assert {"weights", "gradients", "moments", "activations", "output head", "context"} <= set(phases["update"])
    assert {"engine weights", "engine cache", "CUDA graphs"} <= set(phases["rollout"])
    assert figures["plan/memory_gib"] == pytest.approx(max(parts["total"] for parts in phases.values()))
    shown = capsys.readouterr().out
    assert "engine cache" in shown
    assert "estimate, nothing was measured" in shown or "does not fit" in shown


def test_a_plan_for_a_cpu_says_that_hours_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(compose_config(["+experiment=demo_tiny", "job=plan"], tmp_path))
    assert figures["plan/fits"] == 1
    assert "plan/hours" not in figures
    assert "hardware.peak_tflops" in capsys.readouterr().out


def test_a_step_logs_what_it_used_beside_the_plan() -> None:
    speed = ["hardware.peak_tflops=1", "hardware.memory_bandwidth=1"]
    config = compose_config(["+experiment=demo_tiny", *speed], Path("r"))
    model = tiny_model(0)
    dimensions = dimensions_of(model.config, None)
    assert dimensions is not None
    usage = Usage(plan_run(config, dimensions, 2**33))
    policy = Policy(model, PoolingConfig(), replace(config.hardware, packing=False), pad_token_id=0)
    asked = [TextSequence(Prompt((3, 4, 5), 0), (6, 7))]
    policy.score(asked)
    scored = usage.step_metrics(policy, {"time/score": 2.0})
    next(policy.passes(asked, 100)).logprobs_P.sum().backward()
    trained = usage.step_metrics(policy, {"time/update": 1.0})
    assert trained["perf/mfu"] == pytest.approx(3 * 2 * scored["perf/mfu"])  # a backward is two forwards
    matrices = 2 * 5 * 2 * dimensions.layer_matrices  # two FLOPs, five tokens, two layers
    head = 2 * 2 * dimensions.embedding
    attention = 4 * 2 * 64 * (9 / 2 + 2 * 3 + 4 / 2)
    assert scored["perf/mfu"] * 2 * 1e12 == pytest.approx(matrices + head + attention)
    assert usage.step_metrics(policy, {"time/update": 1.0})["perf/mfu"] == 0
    assert scored["perf/memory_planned_gib"] > 0 and scored["perf/memory_peak_gib"] > 0
    assert ("perf/memory_reserved_gib" in scored) is torch.cuda.is_initialized()
