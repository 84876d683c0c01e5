from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from grace_exp.errors import GraceError
from grace_exp.rollout.vllm.weights import (
    checkpoint_weights,
    load_into,
    weight_shapes,
    write_model_folder,
    write_weights,
)


@pytest.fixture
def adapted(model: PreTrainedModel) -> PreTrainedModel:
    with_adapters = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in with_adapters.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return with_adapters  # type: ignore[return-value]


def test_names_and_values_are_those_of_a_checkpoint(shared_model: PreTrainedModel, tmp_path: Path) -> None:
    shared_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    found = dict(checkpoint_weights(shared_model))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_adapters_are_folded_in_as_peft_does(adapted: PreTrainedModel) -> None:
    found = {name: value.clone() for name, value in checkpoint_weights(adapted)}
    merged = dict(adapted.merge_and_unload().named_parameters())  # type: ignore[operator]
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_adapters_are_left_out_and_the_model_stays_as_it_was(
    adapted: PreTrainedModel, shared_model: PreTrainedModel
) -> None:
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    plain = dict(checkpoint_weights(adapted, adapters=False))
    list(checkpoint_weights(adapted))
    for name, value in shared_model.named_parameters():
        assert torch.equal(plain[name], value)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    assert not any(value.requires_grad for value in plain.values())


def test_a_model_folder_with_weights_loads_as_the_model_without_adapters(
    adapted: PreTrainedModel, shared_model: PreTrainedModel, tmp_path: Path
) -> None:
    write_model_folder(adapted, tmp_path, weights=True, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, shared_model(ids).logits)


def test_weights_are_written_in_the_engines_type(shared_model: PreTrainedModel, tmp_path: Path) -> None:
    write_weights(shared_model, tmp_path / "w.safetensors", adapters=True, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "w.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(GraceError, match="cannot be written"):
        write_weights(shared_model, tmp_path / "no" / "w.safetensors", adapters=True, dtype=torch.float32)


def test_a_weight_without_a_value_is_an_error() -> None:
    class Engine(torch.nn.Linear):
        def load_weights(self, weights: object) -> set[str]:
            return {"weight"}

    with pytest.raises(RuntimeError, match=r"no value for 1 of the engine's weights: \['bias'\]"):
        load_into(Engine(2, 2), iter(()), {"weight", "bias"})


def test_names_and_shapes_are_known_without_folding_adapters_in(adapted: PreTrainedModel) -> None:
    expected = [(name, tuple(value.shape)) for name, value in checkpoint_weights(adapted)]
    assert list(weight_shapes(adapted)) == expected
