"""What a run exports loads with the usual libraries and is the trained policy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from lightning.pytorch import Callback

from grace_exp.policy.tiny import tiny_model

LORA = ["+backbone.lora.rank=4", "+backbone.lora.dropout=0.1"]
IDS = torch.tensor([[5, 300, 17, 900, 42, 8]])


class Logits(Callback):
    """The trained policy's, before anything is exported."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        model = pl_module.policy.model.eval()
        with torch.no_grad():
            self.logits = model(IDS).logits


@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_the_merged_export_loads_with_transformers_and_gives_the_policys_logits(train, lora: list[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = Logits()
    run = train("job.steps=2", "optim.learning_rate=0.01", "callbacks.export=[merged]", *lora, callbacks=(trained,))
    folder = run.path / "export" / "merged"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, trained.logits, rtol=0, atol=1e-4 if lora else 0)
        assert (tiny_model(seed=0)(IDS).logits - trained.logits).abs().max() > 0.1  # far more than the tolerance
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_the_adapter_export_loads_with_peft_and_gives_the_policys_logits(train) -> None:
    from peft import PeftModel

    trained = Logits()
    run = train(
        "job.steps=2", "optim.learning_rate=0.01", "callbacks.export=[merged,adapter]", *LORA, callbacks=(trained,)
    )
    assert sorted(path.name for path in (run.path / "export").iterdir()) == ["adapter", "merged"]
    model = PeftModel.from_pretrained(tiny_model(seed=0), run.path / "export" / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, trained.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_model_card_and_settings_tell_how_to_use_it(train, kind: str) -> None:
    run = train(
        "job.steps=1",
        f"callbacks.export=[{kind}]",
        *LORA,
        "prompt.instructions.query='A question: \"why\"'",
        "backbone.pooling.region=rationale",
        "evaluation=demo",
        "~evaluation.sets.stsb",
        "evaluation.sets.wordnet.size=4",
        "evaluation.minilm=false",
    )
    folder = run.path / "export" / kind
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    written = yaml.safe_load(front)
    assert written["library_name"] == "sentence-transformers"
    assert written["tags"] == ["sentence-transformers", "grace-exp", "text-embedding", "reinforcement-learning"]
    (result,) = written["model-index"][0]["results"]
    assert result["dataset"] == {"name": "wordnet dev", "type": "wordnet"}
    value = json.loads((run.path / "summary.json").read_text())["heldout"]["wordnet"]["after"]["value"]
    assert result["metrics"][0]["value"] == round(value, 2)
    summary = json.loads((run.path / "summary.json").read_text())
    table = summary["table"]["wordnet"]
    assert f"| wordnet | {table['before']} | {table['after']} | {table['prompt_only_after']} |" in body
    assert "data: wordnet (supervised), 1 steps of 4 instances, seed 0" in body
    (listed,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (listed.task_type, listed.metric_value) == ("retrieval", round(value, 2))
    latency = summary["latency"]["wordnet"]
    assert 0 < latency["tokens_per_text"] <= 6 and latency["ms_per_text"] > 0 and latency["machine"] in body
    assert f"| wordnet | {latency['tokens_per_text']:.1f} | {latency['ms_per_text']:.1f} |" in body

    settings = json.loads((folder / "grace_config.json").read_text())
    assert settings["prompt"]["system"].startswith("Say in one sentence")
    assert settings["prompt"]["instructions"]["query"] == 'A question: "why"'
    assert settings["pooling"] == {"region": "rationale", "method": "mean", "transform": "none", "layer": -1}
    assert settings["max_tokens"] == 6


def test_a_second_export_replaces_the_first(train, tmp_path: Path) -> None:
    train("job.steps=1", "callbacks.export=[merged]", folder=tmp_path)
    first = (tmp_path / "export" / "merged" / "model.safetensors").read_bytes()
    train("job.steps=2", "callbacks.export=[merged]", f"job.resume={tmp_path}", folder=tmp_path)
    assert (tmp_path / "export" / "merged" / "model.safetensors").read_bytes() != first


def test_an_adapter_finds_its_base_from_any_folder_and_no_other(train, tmp_path, monkeypatch) -> None:
    from grace_exp import GraceEncoder
    from grace_exp.errors import ConfigError
    from grace_exp.policy.tiny import tiny_tokenizer

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_model(seed=5).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    backbone = ["backbone.source=hub", "backbone.path=base", "backbone.name=mine"]
    run = train("job.steps=1", "callbacks.export=[adapter]", *LORA, *backbone)
    folder = run.path / "export" / "adapter"
    monkeypatch.chdir(tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "here" / "base")
    vectors = GraceEncoder.from_pretrained(folder, cache=False).encode("a", max_tokens=0)
    assert vectors.shape == (64,)
    tiny_model(seed=6).save_pretrained(tmp_path / "here" / "base")  # another model takes its place
    with pytest.raises(ConfigError, match="are not those that the adapter was trained on"):
        GraceEncoder.from_pretrained(folder, cache=False)
