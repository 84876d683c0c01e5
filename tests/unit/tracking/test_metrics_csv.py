"""The metrics file: exact, merged by step, and the same after an interruption."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch

from grace_exp.tracking.metrics_csv import MetricsCsv

pytestmark = pytest.mark.filterwarnings("ignore:metric names that are not listed")


def test_floats_read_back_as_the_same_floats(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 1e-300, -2.5e17, float("inf")]
    logger = MetricsCsv(tmp_path / "metrics.csv")
    for step, value in enumerate(values):
        logger.log_metrics({"train/loss": value}, step)
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [float(row["train/loss"]) for row in read] == values
    assert [int(row["step"]) for row in read] == [0, 1, 2, 3, 4]


def test_nan_tensors_and_integers_are_numbers_in_the_file(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"a": torch.tensor(0.5), "b": 3, "c": float("nan")}, 1)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n1,0.5,3,nan\n"


def test_calls_of_one_step_make_one_row(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 1.0, "b": 2.0}, 1)
    logger.log_metrics({"a": 3.0}, 2)
    logger.log_metrics({"b": 4.0}, 2)  # joins on disk: no new column
    logger.log_metrics({"c": 5.0}, 2)  # joins with a new column
    logger.log_metrics({"a": 6.0}, 3)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b,c\n1,1.0,2.0,\n2,3.0,4.0,5.0\n3,6.0,,\n"


def test_a_shorter_value_replaces_a_longer_one_of_the_same_step(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 0.123456789}, 1)
    logger.log_metrics({"a": 0.5}, 1)
    logger.log_metrics({"a": 0.25}, 2)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n1,0.5\n2,0.25\n"


def test_names_with_commas_stay_one_column(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"val/a,b": 1.0}, 1)
    logger.log_metrics({"other": 2.0}, 2)
    read = pd.read_csv(tmp_path / "metrics.csv")
    assert read.columns.tolist() == ["step", "val/a,b", "other"]


@pytest.mark.parametrize("torn", ["", "11,0.", "11,0.5,9"])
@pytest.mark.parametrize("checkpoint", [1, 4, 5, 9, 10])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path: Path, checkpoint: int, torn: str) -> None:
    def run(logger: MetricsCsv, first: int, last: int) -> None:
        for step in range(first, last + 1):
            logger.log_metrics({"train/loss": 1 / (step + 1)}, step)
            if step % 5 == 0:
                logger.log_metrics({f"val/at_{step}": step * 0.1}, step)
            logger.log_metrics({"reward/total": step**0.5}, step)

    whole, interrupted = tmp_path / "whole.csv", tmp_path / "interrupted.csv"
    run(MetricsCsv(whole), 1, 12)
    run(MetricsCsv(interrupted), 1, 10)
    with interrupted.open("a") as stream:
        stream.write(torn)
    resumed = MetricsCsv(interrupted)
    resumed.truncate(checkpoint + 1)
    run(resumed, checkpoint + 1, 12)
    assert interrupted.read_bytes() == whole.read_bytes()


def test_opening_again_continues_the_last_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsCsv(path).log_metrics({"a": 1.0, "b": 1.0}, 7)
    MetricsCsv(path).log_metrics({"b": 2.0}, 7)
    assert path.read_text() == "step,a,b\n7,1.0,2.0\n"


def test_truncating_at_zero_starts_over(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"old": 1.0}, 3)
    logger.truncate(0)
    logger.log_metrics({"new": 2.0}, 1)
    assert (tmp_path / "metrics.csv").read_text() == "step,new\n1,2.0\n"


def test_a_step_that_goes_back_is_an_error(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 1.0}, 3)
    with pytest.raises(ValueError, match=r"step=2\) after step 3"):
        logger.log_metrics({"a": 1.0}, 2)
    with pytest.raises(ValueError, match="one row a step"):
        logger.log_metrics({"a": 1.0})
