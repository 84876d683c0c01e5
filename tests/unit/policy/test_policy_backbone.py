import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.policy.load_backbone import Backbone, load_backbone


def load(
    path: Path | str | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> Backbone:
    config = BackboneConfig(
        name="b", source="tiny" if path is None else "hub", path=None if path is None else str(path), **settings
    )
    return load_backbone(config, cache_dir=Path("/nowhere"), seed=seed, dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path, shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The tiny model as a local folder."""
    path = tmp_path / "model"
    shared_model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_local_folder_is_loaded_in_the_asked_type(folder: Path, shared_model: PreTrainedModel) -> None:
    backbone = load(folder, dtype=torch.bfloat16)
    expected = shared_model.state_dict()
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    assert backbone.tokenizer.chat_template is not None
    assert backbone.end_token_ids == (2,)
    assert backbone.pad_token_id == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("local", [True, False], ids=["folder", "tiny"])
def test_the_attention_is_the_configured_one(folder: Path, local: bool, attention: Literal["sdpa", "eager"]) -> None:
    assert load(folder if local else None, attention=attention).model.config._attn_implementation == attention


@pytest.mark.parametrize(("configured", "ends"), [([7, 9], (2, 7, 9)), (5, (2, 5)), (None, (2,))])
def test_end_tokens_are_the_tokenizers_and_those_of_the_generation_config(
    folder: Path, configured: Any, ends: tuple[int, ...]
) -> None:
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"eos_token_id": configured}))
    assert load(folder).end_token_ids == ends


def test_a_model_without_end_token_is_refused(folder: Path) -> None:
    for name, key in (
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ):
        settings = json.loads((folder / name).read_text())
        settings[key] = None
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="neither tokenizer nor generation config names an end token"):
        load(folder)


def test_padding_is_an_end_token_where_the_tokenizer_has_none(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    backbone = load(folder)
    assert backbone.tokenizer.pad_token_id is None
    assert backbone.pad_token_id == 2


def break_nothing(folder: Path) -> None:
    """Makes an empty folder."""
    for file in folder.iterdir():
        file.unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_type(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "unheard-of"}))


def break_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [break_nothing, break_config, break_type, break_weights, remove_weights])
def test_a_folder_that_holds_no_whole_model_is_an_error_that_names_it(folder: Path, damage: Any) -> None:
    damage(folder)
    with pytest.raises(MissingResourceError, match=r"backbone\.path = '.*model' could not be loaded"):
        load(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "nobody/no-such-model"])
def test_a_path_that_is_not_there_is_an_error_that_says_what_to_give(path: str) -> None:
    with pytest.raises(
        MissingResourceError, match=f"backbone.path = '{path}' could not be loaded: .*Give a local folder"
    ):
        load(path)


def test_lora_trains_adapters_on_every_linear_layer_but_the_head() -> None:
    model = load(lora=LoraConfig(rank=4, alpha=8.0, dropout=0.25)).model
    assert isinstance(model, PeftModel)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2  # two matrices for each of seven linear layers in two blocks
    assert not any("lm_head" in name for name in trained)
    layer: Any = model.get_base_model().get_decoder().layers[0].mlp.up_proj
    assert layer.scaling["default"] == 2.0
    assert layer.lora_dropout["default"].p == 0.25


def test_adapters_begin_as_nothing_and_follow_the_seed() -> None:
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        model = load(seed=seed, lora=LoraConfig(rank=4)).model
        return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}

    state = torch.get_rng_state()
    one, same, other = adapters(1), adapters(1), adapters(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not one[name].any() for name in one if "lora_B" in name)
    assert all(not torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_target_modules_that_name_nothing_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.lora\.target_modules = \['nothing'\]"):
        load(lora=LoraConfig(target_modules=["nothing"]))


@pytest.mark.parametrize(
    ("asked", "kind"), [(True, "full"), (False, "off"), ("full", "full"), ("selective", "selective"), ("off", "off")]
)
def test_gradient_checkpointing_is_as_configured(asked: Any, kind: str) -> None:
    assert BackboneConfig(name="tiny", source="tiny", gradient_checkpointing=asked).gradient_checkpointing == kind
    assert load(gradient_checkpointing=asked).model.is_gradient_checkpointing is (kind != "off")
