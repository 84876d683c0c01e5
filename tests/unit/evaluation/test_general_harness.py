"""lm-eval's own path over tasks described here, with data in files."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from grace_exp.config.backbone import BackboneConfig, LoraConfig
from grace_exp.config.evaluation import GeneralConfig
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.evaluation.general.compared_model import ComparedModel
from grace_exp.evaluation.general.harness import prepare_tasks, run_tasks
from grace_exp.policy.load_backbone import Backbone, load_backbone

pytest.importorskip("lm_eval")

CHOICES = list("abcdefghijklmnopqrstuvwxyz")
QUESTIONS = [f"What is {thing}?" for thing in ("it", "grass", "the sky", "a dog", "tea", "his name", "7", "snow")]
CHOICE_TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl, train: {folder}/choice.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: {choices}
doc_to_target: answer
metric_list:
  - metric: acc
"""
WRITING_TASK = """
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/writing.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{do_sample: false, max_gen_toks: 4, until: ["<|im_end|>"]}}
filter_list:
  - name: whole
    filter:
      - function: take_first
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A model with adapters that do something."""
    config = BackboneConfig(name="tiny", source="tiny", lora=LoraConfig(rank=4))
    loaded = load_backbone(config, cache_dir=tmp_path_factory.mktemp("cache"), seed=0, dtype=torch.float32)
    for name, weight in loaded.model.eval().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1.0, generator=torch.Generator().manual_seed(0))
    return loaded


@pytest.fixture(scope="module")
def models(backbone: Backbone) -> dict[str, ComparedModel]:
    own = backbone.model.get_base_model()
    return {"base": ComparedModel(own, backbone.model.disable_adapter), "trained": ComparedModel(own)}


@torch.no_grad()
def preferred(backbone: Backbone, compared: ComparedModel, question: str) -> int:
    """The choice with the highest log-likelihood behind the question, by definition."""
    tokenizer, likelihoods = backbone.tokenizer, []
    with compared.active():
        for choice in CHOICES:
            context = len(tokenizer.encode(question))
            ids = tokenizer.encode(f"{question} {choice}")
            logprobs = compared.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(context, len(ids))))
    return likelihoods.index(max(likelihoods))


@torch.no_grad()
def written(backbone: Backbone, compared: ComparedModel, question: str) -> str:
    ids = torch.tensor([backbone.tokenizer.encode(question)])
    with compared.active():
        output = compared.model.generate(ids, max_new_tokens=4, do_sample=False)
    return str(backbone.tokenizer.decode(output[0, ids.shape[1] :])).partition("<|im_end|>")[0]


def run(config: GeneralConfig, backbone: Backbone, compared: ComparedModel):
    return run_tasks(prepare_tasks(config), compared, backbone.tokenizer, config, bf16=False, template_kwargs={})


def test_a_choice_task_scores_the_model_in_memory_with_and_without_its_adapters(
    backbone: Backbone, models: dict[str, ComparedModel], tmp_path: Path
) -> None:
    # The answers are what the trained side prefers, so it has all of them right.
    wanted = [preferred(backbone, models["trained"], question) for question in QUESTIONS]
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, wanted, strict=True)]
    (tmp_path / "choice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(CHOICE_TASK.format(folder=tmp_path, choices=json.dumps(CHOICES)))
    config = GeneralConfig(tasks=[str(tmp_path / "task.yaml")])
    (trained,) = run(config, backbone, models["trained"])
    assert (trained.task, trained.metric, trained.value) == ("colours", "acc", 1.0)
    assert (trained.shots, trained.examples, trained.stderr) == (0, 8, 0.0)
    (base,) = run(config, backbone, models["base"])
    agreeing = [preferred(backbone, models["base"], question) for question in QUESTIONS]
    assert base.value == sum(a == b for a, b in zip(agreeing, wanted, strict=True)) / 8 < 1
    shots = GeneralConfig(tasks=config.tasks, fewshot={config.tasks[0]: 2}, limit=3)
    (few,) = run(shots, backbone, models["trained"])
    assert (few.shots, few.examples) == (2, 3)


def test_a_generation_task_compares_what_the_model_writes(
    backbone: Backbone, models: dict[str, ComparedModel], tmp_path: Path
) -> None:
    answers = [written(backbone, models["trained"], question) for question in QUESTIONS]
    answers[0] = "something else"
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    (tmp_path / "writing.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(WRITING_TASK.format(folder=tmp_path))
    (figure,) = run(GeneralConfig(tasks=[str(tmp_path / "task.yaml")], batch_size=3), backbone, models["trained"])
    assert (figure.task, figure.metric, figure.value) == ("writing", "exact_match (whole)", 7 / 8)
    assert figure.metrics == {"exact_match,whole": 7 / 8}


def test_without_the_hub_one_error_names_the_data_of_all_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingResourceError) as raised:
        prepare_tasks(GeneralConfig(tasks=["gsm8k", "mmlu", "humaneval"]))
    message = str(raised.value)
    assert "gsm8k (openai/gsm8k), mmlu (cais/mmlu)" in message and "general_offline" in message
    assert "humaneval" not in message  # runs code, which nobody asked for


def test_what_runs_code_is_left_out_unless_asked_for() -> None:
    prepared = prepare_tasks(GeneralConfig(tasks=["humaneval"]))
    assert prepared.loaded == {} and "run_untrusted_code=true" in prepared.skipped["humaneval"]


def test_a_task_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml is not a file"):
        prepare_tasks(GeneralConfig(tasks=[str(tmp_path / "nothing.yaml")]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither tasks nor probe_texts"),
        ({"tasks": ["gsm8k"], "fewshot": {"gms8k": 5}}, "fewshot names gms8k"),
        ({"tasks": ["gsm8k"], "limit": 0}, "limit"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GeneralConfig(**settings)  # type: ignore[arg-type]
