"""The paper's figures beside a model's own."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from grace_exp.config.compose import compose_config
from grace_exp.evaluation.mteb.mteb_results import V1_COUNTS, TaskScore, category_table
from grace_exp.evaluation.mteb.paper_figures import paper_row, paper_row_of_folder
from grace_exp.jobs.benchmark import _paper_row

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"


def test_averages_are_the_printed_one_and_those_of_the_categories() -> None:
    row = paper_row(QWEN, "grace", "supervised")
    assert row is not None and row.figures["retrieval"] == 40.44 and row.figures["average_as_in_paper"] == 45.48
    assert row.figures["average_over_tasks"] == pytest.approx(47.91, abs=0.005)
    assert paper_row(QWEN, "simcse", "supervised") is None
    assert paper_row("HuggingFaceTB/SmolLM2-135M-Instruct", "grace", "supervised") is None


@pytest.mark.parametrize(
    ("overrides", "method", "setting"),
    [
        (["backbone=qwen25_1_5b"], "reasoning", "supervised"),
        (["backbone=qwen25_1_5b", "job.encode.mode=prompt_only"], "base", "supervised"),
        ([f"job.model={QWEN}", "job.encode.mode=prompt_only"], "base", "supervised"),
        (["+experiment=qwen_unsup", "job.resume=runs/x"], "grace", "unsupervised"),
        (["+experiment=qwen_sup", "method=contrastive", "job.resume=runs/x"], "contrastive", "supervised"),
    ],
)
def test_the_row_is_that_of_the_model(overrides: list[str], method: str, setting: str) -> None:
    common = ["job=evaluate", "hardware=cpu", "rollout=transformers"]
    config = compose_config([*overrides, *common, "evaluation=mteb_en_v1"], Path("run"))
    row = _paper_row(config)
    assert row is not None
    assert (row.backbone, row.method, row.setting) == ("Qwen2.5-1.5B-Instruct", method, setting)
    assert _paper_row(compose_config([*overrides, *common, "evaluation=paper_16"], Path("run"))) is None


def test_a_run_folder_and_its_export_have_the_row_of_their_settings(tmp_path: Path) -> None:
    settings = {"backbone": {"path": QWEN}, "method": {"name": "grace"}, "data": {"mode": "supervised"}}
    export = tmp_path / "export" / "merged"
    export.mkdir(parents=True)
    assert paper_row_of_folder(export) is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "provenance.json").write_text(json.dumps({}))
    assert paper_row_of_folder(tmp_path) == paper_row_of_folder(export) == paper_row(QWEN, "grace", "supervised")


def test_only_whole_categories_stand_beside_the_paper() -> None:
    row = paper_row(QWEN, "grace", "supervised")
    assert row is not None

    def lines(scores: list[TaskScore]) -> list[list[str]]:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(category_table("v1", {"mine": scores}, row.figures))
        return [line.replace("│", " ").split() for line in capture.get().splitlines()]

    every = [TaskScore(f"{name}{n}", name, "m", 50.0) for name, count in V1_COUNTS.items() for n in range(count)]
    shown = lines(every)
    assert ["retrieval", "15", "50.00", "40.44"] in shown
    assert ["average", "over", "tasks", "56", "50.00", "47.91"] in shown
    assert any(line[-2:] == ["50.00", "45.48"] for line in shown)
    fewer = lines(every[1:])  # one of retrieval's is missing
    assert ["retrieval", "14", "50.00"] in fewer and ["reranking", "4", "50.00", "46.95"] in fewer
    assert ["average", "over", "tasks", "55", "50.00"] in fewer
