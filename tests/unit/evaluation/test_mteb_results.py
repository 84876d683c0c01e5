"""Category means, averages, table and file of a benchmark."""

import csv
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from grace_exp.evaluation.mteb.mteb_results import (
    CATEGORIES,
    V1_COUNTS,
    TaskScore,
    averages,
    category_means,
    category_table,
    figures,
    write_csv,
)
from grace_exp.evaluation.scores import ItemScores

# Of arXiv 2510.04506, Qwen2.5-1.5B-Instruct: retrieval to summarization, and the average it prints.
BASE = ((22.15, 29.32, 25.44, 36.18, 35.77, 44.11, 26.32), 30.33)
GRACE = ((40.44, 46.95, 39.55, 54.84, 55.36, 59.42, 30.41), 45.48)

SCORES = [
    TaskScore("A", "sts", "cosine_spearman", 40.0, 2.0),
    TaskScore("B", "retrieval", "ndcg_at_10", 10.0, 3.0),
    TaskScore("C", "sts", "cosine_spearman", 50.0),
]


@pytest.mark.parametrize(("row", "right"), [(BASE, 30.97), (GRACE, 47.91)], ids=["base", "grace"])
def test_the_papers_average_is_told_from_the_right_one(row: tuple[tuple[float, ...], float], right: float) -> None:
    found = averages(dict(zip(CATEGORIES.values(), row[0], strict=True)), V1_COUNTS)
    assert found["average_as_in_paper"] == pytest.approx(row[1], abs=0.01)
    assert found["average_over_tasks"] == pytest.approx(right, abs=0.005)
    assert found["average_over_categories"] == pytest.approx(sum(row[0]) / 7)


def test_v1_has_56_tasks() -> None:
    assert sum(V1_COUNTS.values()) == 56


def test_figures_are_means_per_category_and_over_all_tasks() -> None:
    assert category_means(SCORES) == {"retrieval": 10, "sts": 45}  # in the paper's order
    assert figures(SCORES) == {
        "mteb/A": 40,
        "mteb/B": 10,
        "mteb/C": 50,
        "mteb/category/retrieval": 10,
        "mteb/category/sts": 45,
        "mteb/average_over_tasks": pytest.approx(100 / 3),
        "mteb/average_over_categories": 27.5,
    }  # and no average of the paper, whose benchmark this is not


def test_the_table_sets_models_beside_each_other() -> None:
    others = [TaskScore(score.task, score.category, score.metric, 2 * score.score) for score in SCORES]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(category_table("some", {"mine": SCORES, "other": others}))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    assert ["retrieval", "1", "10.00", "20.00"] in lines and ["sts", "2", "45.00", "90.00"] in lines
    assert ["average", "over", "tasks", "3", "33.33", "66.67"] in lines


def test_the_csv_has_a_row_a_model_and_task(tmp_path: Path) -> None:
    write_csv(tmp_path / "some.csv", {"mine": SCORES, "other": SCORES[:1]})
    with (tmp_path / "some.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["task"]) for row in rows] == [
        ("mine", "A"),
        ("mine", "B"),
        ("mine", "C"),
        ("other", "A"),
    ]
    assert rows[0] == {
        "model": "mine",
        "task": "A",
        "category": "sts",
        "metric": "cosine_spearman",
        "score": "40.0000",
        "low": "",
        "high": "",
        "seconds": "2.0",
        "tokens_per_text": "",
        "ms_per_text": "",
    }
    assert rows[2]["seconds"] == ""


def test_scores_of_items_give_an_interval(tmp_path: Path) -> None:
    items = ItemScores(np.tile([0.0, 1.0], 50), None)
    write_csv(tmp_path / "some.csv", {"mine": [TaskScore("A", "retrieval", "ndcg_at_10", 50.0, items=items)]}, 500)
    with (tmp_path / "some.csv").open() as file:
        row = next(csv.DictReader(file))
    assert 35 < float(row["low"]) < 45 and 55 < float(row["high"]) < 65
