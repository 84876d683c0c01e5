"""Expected figures stand beside those of a finished run."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from grace_exp.config.compose import compose_config, to_dict
from grace_exp.evaluation.mteb.mteb_results import V1_COUNTS

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.fixture(scope="module")
def beside() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_beside", EXPERIMENTS / "paper" / "beside.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_folder(folder: Path, *overrides: str) -> Path:
    (folder / "evaluation").mkdir()
    settings = to_dict(compose_config(list(overrides), folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        (["+experiment=qwen_sup"], ("Qwen2.5-1.5B-Instruct", "grace", "supervised")),
        (["+experiment=simcse", "backbone=llama32_3b"], ("Llama-3.2-3B-Instruct", "simcse", "unsupervised")),
        (["+experiment=qwen3_4b_base"], ("Qwen3-4B-Instruct-2507", "base", "supervised")),
        (["+experiment=qwen25_3b_reasoning"], ("Qwen2.5-3B-Instruct", "reasoning", "supervised")),
    ],
)
def test_a_run_belongs_to_the_papers_row_of_its_backbone_and_method(
    beside: ModuleType, tmp_path: Path, overrides: list[str], row: tuple[str, str, str]
) -> None:
    folder = run_folder(tmp_path, *overrides)
    (comparison,) = beside.compare(folder)
    assert comparison.title.startswith(", ".join(row))
    assert comparison.figures.keys() == {*V1_COUNTS, "reported_avg"}


def test_every_row_of_the_papers_tables_is_the_row_of_an_experiment(beside: ModuleType) -> None:
    from grace_exp.config.experiments import paired_experiments

    found = {beside.row_of(_settings(name)) for name in paired_experiments()}
    rows = beside._read(EXPERIMENTS / "paper" / "mteb_results.csv")
    assert {beside.Row(row["backbone"], row["method"], row["setting"]) for row in rows} <= found


def _settings(experiment: str) -> dict[str, Any]:
    return to_dict(compose_config([f"+experiment={experiment}"], Path("run")))


def test_without_an_evaluation_the_command_that_makes_one_is_named(beside: ModuleType, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "+experiment=qwen_sup")
    (comparison,) = beside.compare(folder)
    command = f"python -m grace_exp +experiment=qwen_sup job=evaluate evaluation=mteb_en_v1 job.resume={folder}"
    assert comparison.missing == command
    assert comparison.figures["reported_avg"] == ("45.48", None)


def test_the_average_counts_summarization_ten_times_as_the_paper_does(beside: ModuleType, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "+experiment=qwen_sup")
    paper = next(row for row in beside._read(EXPERIMENTS / "paper" / "mteb_results.csv") if row["method"] == "grace")
    lines = [f"mine,task,{name},main,{paper[name]},,," for name in V1_COUNTS]
    header = "model,task,category,metric,score,low,high,seconds"
    (folder / "evaluation" / "mteb_en_v1.csv").write_text("\n".join([header, *lines]))
    (comparison,) = beside.compare(folder)
    for expected, own in comparison.figures.values():
        assert float(own) == pytest.approx(float(expected), abs=0.02)  # the paper rounds
    assert comparison.missing is None


def test_the_demo_stands_beside_its_five_seeds(beside: ModuleType, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "+experiment=demo")
    heldout = {"stsb": {"before": {"value": 54.4}, "after": {"value": 66.1}}}
    (folder / "summary.json").write_text(json.dumps({"heldout": heldout}))
    (demo,) = beside.compare(folder)
    assert demo.figures["stsb, rationale, after"] == ("63.6 to 70.5", "66.1")
    assert demo.figures["wordnet, rationale, before"] == ("67.0", None)


def test_the_policy_gradient_alone_stands_beside_its_row_of_the_table(beside: ModuleType, tmp_path: Path) -> None:
    (table,) = beside.compare(run_folder(tmp_path, "+experiment=demo_paper"))
    assert "grace infonce" in table.title and table.missing is not None


def test_a_run_that_nobody_has_figures_of_is_told_so(beside: ModuleType, tmp_path: Path) -> None:
    assert beside.compare(run_folder(tmp_path, "+experiment=demo_tiny")) == []
