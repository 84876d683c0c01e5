"""The table of rollouts: one parquet part a step, readable as a whole."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from grace_exp.tracking.samples import SamplesTable

ANCHOR: dict[str, Any] = {
    "instance": 4,
    "source": "wordnet",
    "role": "query",
    "text": 'a "quoted"\ntext, ü',
    "prompt_tokens": 31,
    "rationale": "",
    "rationale_tokens": 0,
    "finish_reason": "stop",
}
SAMPLE = ANCHOR | {"role": "positive", "rationale": "It says so.", "rationale_tokens": 4, "finish_reason": "length"}
FIGURES = {"positive": 0.75, "total": 7.5, "final": -1.0, "advantage": 1 / 3}


def test_parts_read_back_as_one_table(tmp_path: Path) -> None:
    table = SamplesTable(tmp_path / "samples")
    table.log(5, [ANCHOR, SAMPLE | FIGURES])
    table.log(10, [SAMPLE | FIGURES, ANCHOR])
    assert sorted(path.name for path in table.path_dir.iterdir()) == ["step-000005.parquet", "step-000010.parquet"]
    read = pd.read_parquet(table.path_dir)
    assert read["step"].tolist() == [5, 5, 10, 10]
    expected = SAMPLE | FIGURES | {"step": 10}
    assert read.iloc[2].to_dict() == expected
    assert read.iloc[0]["text"] == ANCHOR["text"]
    assert read.iloc[0][list(FIGURES)].isna().all()


def test_a_part_without_any_figure_value_keeps_its_number_type(tmp_path: Path) -> None:
    table = SamplesTable(tmp_path)
    table.log(1, [ANCHOR | dict.fromkeys(FIGURES)])
    table.log(2, [SAMPLE | FIGURES])
    assert pd.read_parquet(tmp_path)["advantage"].dtype == "float64"


def test_truncate_drops_the_steps_that_run_again(tmp_path: Path) -> None:
    table = SamplesTable(tmp_path)
    for step in (10, 20, 30):
        table.log(step, [SAMPLE | FIGURES])
    table.truncate(20)
    assert pd.read_parquet(tmp_path)["step"].tolist() == [10]


def test_logging_a_step_again_replaces_it(tmp_path: Path) -> None:
    table = SamplesTable(tmp_path)
    table.log(10, [SAMPLE | FIGURES, ANCHOR])
    table.log(10, [ANCHOR | FIGURES])
    assert pd.read_parquet(tmp_path)["role"].tolist() == ["query"]


def test_a_row_without_a_fixed_column_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    row = {name: value for name, value in SAMPLE.items() if name != "finish_reason"}
    with pytest.raises(KeyError, match="finish_reason"):
        SamplesTable(tmp_path).log(1, [row])
    assert list(tmp_path.iterdir()) == []
