"""The engine and hardware that `hardware=auto` chooses."""

import functools
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from grace_exp.config.compose import compose_config, compose_settings, conf_dir
from grace_exp.config.engine_use import engine_of
from grace_exp.config.machine import this_machine, why_no_gpu
from grace_exp.config.preflight import check_machine
from grace_exp.config.root import GraceConfig

FILES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
EMBED = ["job=embed", "job.input=mine.txt", "job.output=mine.npy"]


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    return compose_config(list(overrides), Path("run"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine with a GPU that has bf16, and with vLLM's CUDA build."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA [H100]")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", _cuda_build)
    this_machine.cache_clear()
    yield monkeypatch
    this_machine.cache_clear()


def _cuda_build(package: str) -> str:
    if package != "vllm":
        raise metadata.PackageNotFoundError(package)
    return "0.32.0"


@pytest.mark.parametrize("experiment", [*FILES, "qwen_sup", "llama32_3b_contrastive", "qwen3_4b_reasoning"])
def test_experiments_for_gpus_write_with_vllm_and_those_for_cpus_with_transformers(experiment: str) -> None:
    config = composed(f"+experiment={experiment}")
    assert config.rollout.engine == ("vllm" if config.hardware.accelerator == "gpu" else "transformers")


def test_an_engine_on_the_command_line_goes_before_the_hardwares() -> None:
    assert composed("+experiment=qwen_sup", "rollout=transformers").rollout.engine == "transformers"
    assert composed("+experiment=demo_tiny", "rollout=vllm").rollout.engine == "vllm"


def test_an_experiment_for_gpus_shrunk_onto_the_cpu_needs_no_vllm() -> None:
    assert composed("+experiment=qwen_sup", "+debug=tiny").rollout.engine == "transformers"


@pytest.mark.parametrize("job", [EMBED, ["job=evaluate", "evaluation=demo"]])
def test_embed_and_evaluate_take_the_cpu_where_there_is_no_gpu(job: list[str]) -> None:
    this_machine.cache_clear()
    assert not torch.cuda.is_available(), "tests/unit run on machines without GPU"
    config = compose_config([*job, "job.model=null"], Path("run"))
    assert (config.hardware.name, config.hardware.accelerator) == ("auto", "cpu")
    assert (config.hardware.precision, config.rollout.engine) == ("32-true", "transformers")
    assert config.hardware.score_tokens == composed("hardware=cpu").hardware.score_tokens
    assert "hardware=auto: the CPU (" in this_machine().description


@pytest.mark.parametrize("job", [EMBED, ["job=evaluate", "evaluation=demo"]])
def test_they_take_the_gpu_and_vllm_where_both_are(gpu: pytest.MonkeyPatch, job: list[str]) -> None:
    config = compose_config(job, Path("run"))
    assert (config.hardware.name, config.hardware.accelerator, config.hardware.devices) == ("auto", "gpu", 1)
    assert (config.hardware.precision, config.rollout.engine) == ("bf16-mixed", "vllm")
    assert config.hardware.score_tokens == composed("hardware=gpu").hardware.score_tokens
    assert this_machine().description == "hardware=auto: NVIDIA [H100], bf16-mixed, rationales by vLLM"


@pytest.mark.parametrize("job", ["embed", "evaluate", "serve", "explain"])
def test_every_job_on_a_model_of_the_users_own_finds_its_hardware(job: str) -> None:
    assert compose_settings("config", [f"job={job}"]).hardware.name == "auto"


def test_a_gpu_without_vllm_writes_with_transformers_and_says_how_to_get_it(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert compose_config(EMBED, Path("run")).rollout.engine == "transformers"
    assert "rationales by transformers (package vllm is not installed: " in this_machine().description


def test_a_gpu_without_bf16_computes_in_float32(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    config = compose_config(EMBED, Path("run"))
    assert (config.hardware.accelerator, config.hardware.precision) == ("gpu", "32-true")


def test_a_gpu_that_pytorch_does_not_see_is_told_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "built for CUDA 13.0, which wants an NVIDIA driver of 580 or newer" in why_no_gpu()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_gpu() == "this PyTorch is built without CUDA"


def test_an_experiment_keeps_its_hardware_in_other_jobs() -> None:
    assert composed("+experiment=demo_tiny", *EMBED).hardware.name == "cpu"
    assert composed("+experiment=qwen_sup", "job=evaluate").hardware.name == "h100x4"


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        (["+experiment=qwen_sup"], True),
        (["+experiment=qwen_contrastive"], True),  # its held-out evaluation writes
        (["+experiment=qwen_contrastive", "evaluation=none"], False),
        (["+experiment=qwen_base"], False),
        (["+experiment=qwen_reasoning"], True),
        ([*EMBED, "rollout=vllm"], True),
        ([*EMBED, "rollout=vllm", "job.encode.mode=prompt_only"], False),
        (["job=evaluate", "rollout=vllm", "evaluation=general"], False),
    ],
)
def test_no_engine_is_started_where_nothing_is_written(overrides: list[str], needed: bool) -> None:
    assert engine_of(composed(*overrides)) == ("vllm" if needed else "transformers")


def test_vllm_is_not_asked_for_where_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a text\n")
    overrides = [
        "+experiment=demo_tiny",
        "rollout=vllm",
        "job=embed",
        "job.output=a.npy",
        "job.encode.mode=prompt_only",
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_machine(composed(*overrides, f"job.input={tmp_path / 'mine.txt'}"))
