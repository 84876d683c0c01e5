"""What can be loaded by path or name, with which settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp import GraceEncoder
from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.prompt import PromptConfig
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.center import Center, write_center
from grace_exp.encoder.pretrained import resolve
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.policy.load_backbone import Backbone
from grace_exp.rollout.transformers_engine import TransformersEngine
from grace_exp.rollout.vllm import build

SETTINGS: dict[str, Any] = {
    "prompt": {
        "name": "summary",
        "system": "Say it.",
        "instructions": {"query": "Q?", "positive": None, "negative": None},
        "max_tokens": 64,
    },
    "pooling": {"region": "rationale", "method": "last", "layer": -2},
    "template_kwargs": {"date_string": "26 Jul 2024"},
    "max_tokens": 5,
}
PAPER = "Read and analyze the following text, then you need to provide your reasoning within <think></think> tags."


@pytest.fixture
def folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A model folder without settings of ours."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(model: PreTrainedModel, tmp_path: Path) -> Path:
    """An adapter that changes what the model does, with the settings of its run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    tiny = {"name": "tiny", "source": "tiny", "path": None}
    (tmp_path / "adapter" / "grace_config.json").write_text(json.dumps(SETTINGS | {"backbone": tiny, "seed": 0}))
    return tmp_path / "adapter"


def load(path: Path | str, **settings: Any) -> GraceEncoder:
    return GraceEncoder.from_pretrained(path, cache=False, device="cpu", **settings)


def test_a_plain_model_gets_the_settings_of_the_paper(folder: Path) -> None:
    encoder = load(folder)
    assert encoder.prompt.system is not None and encoder.prompt.system.startswith(PAPER)
    assert (encoder.max_tokens, encoder.max_seq_length) == (2048, 1024)
    assert encoder.policy.pooling == PoolingConfig()
    assert isinstance(encoder.engine, TransformersEngine)
    assert (encoder.name, encoder.device.type, encoder.mode) == (str(folder), "cpu", "rationale")
    assert np.asarray(encoder.encode(["x"], max_tokens=2)).shape == (1, 64)


def test_an_export_gets_the_settings_it_was_trained_with(folder: Path) -> None:
    (folder / "grace_config.json").write_text(json.dumps(SETTINGS | {"mode": "query_only"}))
    encoder = load(folder)
    assert (encoder.prompt.system, encoder.max_seq_length, encoder.max_tokens) == ("Say it.", 64, 5)
    assert encoder.prompts == {"query": "Q?"}
    assert encoder.policy.pooling == PoolingConfig(region="rationale", method="last", layer=-2)
    assert encoder.template_kwargs == {"date_string": "26 Jul 2024"}
    assert encoder.mode == "query_only"


def test_settings_can_be_replaced(folder: Path) -> None:
    (folder / "grace_config.json").write_text(json.dumps(SETTINGS))
    encoder = load(folder, prompt="Other.", pooling=PoolingConfig(), max_tokens=3, dtype=torch.bfloat16, truncate_dim=4)
    assert (encoder.prompt.system, encoder.max_seq_length, encoder.max_tokens) == ("Other.", 64, 3)
    assert encoder.policy.pooling == PoolingConfig()
    vectors = np.asarray(encoder.encode(["x"]))
    assert (vectors.shape, vectors.dtype) == ((1, 4), np.float32)
    assert load(folder, prompt=PromptConfig(name="n", system=None)).prompt.system is None


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_a_run_folder_stands_for_its_export(folder: Path, adapter: Path, tmp_path: Path, export: str) -> None:
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "provenance.json").write_text("{}")
    with pytest.raises(MissingResourceError, match=r"the run .* exported no model .*callbacks\.export"):
        resolve(str(run))
    (folder if export == "merged" else adapter).rename(run / "export" / export)
    found = resolve(str(run))
    assert found == resolve(str(run / "export" / export))
    assert found.adapter == (run / "export" / "adapter" if export == "adapter" else None)


def test_an_adapter_finds_its_base_or_is_given_one(folder: Path, adapter: Path) -> None:
    alone, given = load(adapter), load(folder, adapter=adapter)
    assert alone.prompt.system == given.prompt.system == "Say it."
    assert alone.policy.pooling == given.policy.pooling == PoolingConfig(region="rationale", method="last", layer=-2)
    texts = ["A cat sleeps.", "Rain in May"]
    vectors = np.asarray(alone.encode(texts))
    np.testing.assert_allclose(vectors, given.encode(texts), atol=1e-5)
    assert np.abs(vectors - np.asarray(load(folder, prompt=alone.prompt).encode(texts))).max() > 0.1
    assert not any("lora" in name for name, _ in alone.policy.named_modules())


def test_an_export_on_a_hub_gets_the_settings_it_was_trained_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "grace_config.json").write_text(json.dumps(SETTINGS))
    repository = tmp_path / "hub" / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = load("me/model")
    assert (encoder.prompt.system, encoder.max_tokens, encoder.name) == ("Say it.", 5, "me/model")
    assert encoder.policy.pooling == PoolingConfig(region="rationale", method="last", layer=-2)


def test_a_mean_is_that_of_the_model_it_was_fitted_for(folder: Path, adapter: Path) -> None:
    (folder / "grace_config.json").write_text(json.dumps(SETTINGS))
    write_center(folder, Center(np.ones(64, np.float32), np.ones(64, np.float32)), "grace_config.json")
    assert load(folder).center is not None
    (adapter / "grace_config.json").unlink()
    adapted = load(folder, adapter=adapter)
    assert (adapted.center, adapted.prompt.system) == (None, "Say it.")
    with pytest.raises(ConfigError, match=r"is an adapter itself, and adapter='.*' is another"):
        _name_a_base(adapter, folder)
        resolve(str(adapter), adapter=str(adapter))


def _name_a_base(adapter: Path, base: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))


def test_choices_of_the_configuration_are_names(tmp_path: Path) -> None:
    assert resolve("tiny").backbone.source == "tiny"
    assert resolve("smollm2").backbone.source == "embedded"
    llama = resolve("meta-llama/Llama-3.2-3B-Instruct", revision="abc").backbone
    assert (llama.template_kwargs, llama.revision) == ({"date_string": "26 Jul 2024"}, "abc")
    other = resolve("somebody/model").backbone
    assert (other.path, other.name, other.template_kwargs) == ("somebody/model", "model", {})


@pytest.mark.parametrize("missing", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_an_error(missing: str) -> None:
    with pytest.raises(MissingResourceError, match=r"is not a folder .*: name a run folder"):
        resolve(missing)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"neither config\.json .* nor adapter_config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(MissingResourceError, match=r"adapter='.*' is not a folder with an adapter_config\.json"):
        resolve("tiny", adapter=str(tmp_path))


def test_an_adapter_that_names_no_base_is_an_error(adapter: Path) -> None:
    (adapter / "grace_config.json").unlink()
    with pytest.raises(MissingResourceError, match="does not name its base model: load that and give adapter="):
        resolve(str(adapter))


def test_a_hub_name_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(MissingResourceError, match="'somebody/model' could not be loaded"):
        load("somebody/model")


@pytest.mark.parametrize("content", ["{", '{"prompt": {"name": "x"}}'], ids=["broken", "incomplete"])
def test_damaged_settings_are_an_error(folder: Path, content: str) -> None:
    (folder / "grace_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"grace_config\.json: .*; export the run again"):
        resolve(str(folder))


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(ConfigError, match="engine='fast' is not one of transformers, vllm, vllm_server"):
        load("tiny", engine="fast")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vllm_gets_the_models_lengths_and_precision(folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    (folder / "grace_config.json").write_text(json.dumps(SETTINGS))
    built: list[GraceConfig] = []
    for name in ("build_vllm", "build_vllm_server"):
        monkeypatch.setattr(build, name, lambda config, *_, **__: built.append(config))
    for engine in ("vllm", "vllm_server"):
        load(folder, engine=engine, dtype=dtype, engine_overrides=["rollout.vllm.max_sequences=16"])
    assert [config.rollout.engine for config in built] == ["vllm", "vllm_server"]
    for config in built:
        assert (config.prompt.max_tokens, config.rollout.max_tokens) == (64, 5)
        assert f"torch.{config.rollout.vllm.dtype}" == str(dtype)
        assert (config.hardware.accelerator, config.rollout.vllm.max_sequences) == ("cpu", 16)


def test_an_engine_can_be_brought_along(folder: Path) -> None:
    asked: list[tuple[int, int]] = []

    def make(backbone: Backbone, prompt_tokens: int, max_tokens: int) -> Any:
        asked.append((prompt_tokens, max_tokens))
        return "mine"

    assert load(folder, engine=make, max_tokens=7).engine == "mine"
    assert asked == [(1024, 7)]


def test_the_cache_is_in_the_usual_place_a_folder_or_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACE_EXP_CACHE", str(tmp_path / "usual"))
    for cache, folder in ((True, tmp_path / "usual" / "embeddings"), (tmp_path / "own", tmp_path / "own")):
        encoder = GraceEncoder.from_pretrained("tiny", max_tokens=2, device="cpu", cache=cache)
        encoder.encode("x")
        encoder.close()
        assert [file.name for file in folder.glob("*.sqlite")] == ["rationales-v1.sqlite"]
    assert load("tiny").cache is None
