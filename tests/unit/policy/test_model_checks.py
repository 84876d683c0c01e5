"""What is refused, repaired or warned of before a model is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3NextConfig,
)

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.errors import ConfigError
from grace_exp.policy.load_backbone import Backbone, load_backbone
from grace_exp.policy.model_checks import Longest, check_attention, check_positions, existing_pad, exportable
from grace_exp.training.export import check_exportable


def load(path: Path, **settings: Any) -> Backbone:
    config = BackboneConfig(name="mine", source="hub", path=str(path), **settings)
    return load_backbone(config, cache_dir=path, seed=0, dtype=torch.float32)


@pytest.fixture
def folder(tmp_path: Path, shared_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    shared_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"top_k": 20, "top_p": 0.8},
        {"length_penalty": 2.0},
        {"output_attentions": True},
        {"pad_token_id": -1},
        {"do_sample": True, "temperature": 0.6, "num_return_sequences": 2, "pad_token_id": -1},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_a_generation_config_that_cannot_be_saved_is_repaired_before_training(folder: Path, settings: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = load(folder).model
    model.save_pretrained(folder / "again")
    saved = GenerationConfig.from_pretrained(folder / "again")
    assert saved.eos_token_id == 2
    if settings.get("do_sample"):
        assert saved.temperature == 0.6


def test_what_cannot_be_exported_is_found_before_training(folder: Path) -> None:
    backbone = load(folder)
    check_exportable(backbone)
    backbone.model.config.problem = object()  # type: ignore[assignment]  # nothing that JSON holds
    with pytest.raises(ConfigError, match=r"callbacks\.export: this model could not be exported at the end: "):
        check_exportable(backbone)


def test_what_holds_together_is_kept() -> None:
    whole = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.8, repetition_penalty=1.1, eos_token_id=[1, 2])
    assert exportable(whole).to_diff_dict() == whole.to_diff_dict()


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"], r".*\.(q_proj|embed_tokens)"])
def test_adapters_on_shared_weights_are_refused_before_the_weights_load(folder: Path, targets: Any) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"shares its weight with .*(lm_head|embed_tokens) in mine: leave it out"):
        load(folder, lora=LoraConfig(target_modules=targets))


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"], ["embed_tokens", "v_proj"]])
def test_on_weights_of_their_own_live_merged_and_reloaded_models_compute_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, targets: Any
) -> None:
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    model: Any = load(tmp_path / "m", lora=LoraConfig(rank=2, target_modules=targets)).model
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.tensor([[5, 6, 7]])
    live = model(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    again: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), tmp_path / "adapter")
    torch.testing.assert_close(again(ids).logits, live, rtol=1e-3, atol=1e-3)
    from grace_exp.rollout.merged import MergedCopy

    torch.testing.assert_close(MergedCopy(model).model(ids).logits, live, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, live, rtol=1e-3, atol=1e-3)


def test_a_pad_token_that_has_no_embedding_is_replaced_by_one_that_has(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert [existing_pad(pad, (2,), 10) for pad in (3, 10, -1, None)] == [3, 2, 2, 2]
    assert existing_pad(12, (11,), 10) == 0
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    extra = settings["added_tokens"][0] | {"id": len(tokenizer), "content": "[PAD]"}
    path.write_text(json.dumps(settings | {"added_tokens": [*settings["added_tokens"], extra]}))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "[PAD]"}))
    backbone = load(folder)
    assert backbone.tokenizer.pad_token_id == len(tokenizer) and backbone.pad_token_id == 2


def test_a_template_with_a_token_that_has_no_embedding_is_refused(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(1000)
    model.save_pretrained(folder)
    tokenizer_file = folder / "tokenizer.json"
    settings = json.loads(tokenizer_file.read_text())
    extra = settings["added_tokens"][0] | {"id": 1024, "content": "<turn>"}
    tokenizer_file.write_text(json.dumps(settings | {"added_tokens": [*settings["added_tokens"], extra]}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}")
    with pytest.raises(ConfigError, match=r"its chat template uses '<turn>' \(id 1024\), but the model has 1000"):
        load(folder)


def test_a_turn_that_no_end_token_ends_is_warned_of(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|im_start|>{% endfor %}")
    with pytest.warns(
        UserWarning, match=r"ends a turn with '<\|im_start\|>' \(id 1\), which is not one of its end tokens"
    ):
        load(folder)


MISTRAL = MistralConfig(sliding_window=100)
GEMMA = Gemma3TextConfig(sliding_window=100, layer_types=["sliding_attention", "full_attention"], num_hidden_layers=2)


@pytest.mark.parametrize("config", [MISTRAL, GEMMA], ids=["mistral", "gemma3"])
def test_a_window_shorter_than_the_sequences_is_refused_and_one_that_they_never_fill_is_not(config: Any) -> None:
    check_attention(config, "mine", 100)
    check_attention(config, "mine", None)
    with pytest.raises(ConfigError, match=r"'mine' .* has layers that see 100 tokens back \(sliding_window\)"):
        check_attention(config, "mine", 101)


def test_layers_of_other_kinds_are_refused_by_name_and_plain_ones_are_not() -> None:
    with pytest.raises(ConfigError, match=r"'mine' \(qwen3_next\) has layers of type 'linear_attention'"):
        check_attention(Qwen3NextConfig(), "mine", 10)
    from transformers import BloomConfig, MambaConfig, T5Config

    for other in (BloomConfig(), MambaConfig(), T5Config()):
        with pytest.raises(ConfigError, match=other.model_type):
            check_attention(other, "mine", 10)
    for plain in (Qwen2Config(), GPT2Config(), MistralConfig(sliding_window=None)):
        check_attention(plain, "mine", 10**6)


@pytest.mark.parametrize("config", [GPT2Config(n_positions=64), Qwen2Config(max_position_embeddings=64)])
def test_sequences_longer_than_the_positions_are_refused(config: Any) -> None:
    check_positions(config, "mine", Longest(64, "a"))
    with pytest.raises(ConfigError, match="prompt 1 \\+ 2 = 65 tokens, but mine reads 64: lower one of them"):
        check_positions(config, "mine", Longest(65, "prompt 1 + 2"))
