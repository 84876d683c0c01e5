"""The table of modes and controls of several seeds."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from grace_exp.evaluation.control_table import ControlRow, write_controls
from grace_exp.evaluation.scores import ItemScores

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def evaluated(folder: Path, **values: float) -> Path:
    """A run folder whose rows have that score on all items."""
    rows = [
        ControlRow("a", row, *[ItemScores(np.full(5, value), None)] * 2, tokens_per_text=10 * value, ms_per_text=4.0)
        for row, value in values.items()
    ]
    write_controls(folder / "evaluation", rows, 0, {})
    return folder


def test_scores_are_means_over_seeds_and_differences_are_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script = importlib.import_module("controls_over_seeds")
    folders = [
        evaluated(tmp_path / "0", prompt_only=0.2, rationale=0.5),
        evaluated(tmp_path / "1", prompt_only=0.4, rationale=0.7, adaptive=0.6),
    ]
    monkeypatch.setattr(sys, "argv", ["controls_over_seeds.py", *map(str, folders)])
    script.main()
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    # The interval of a mean over two seeds with constant items: both are the one, or both the other, in half the draws.
    assert found[0] == [
        "a",
        "`prompt_only`",
        "2",
        "30.0 [20.0, 40.0]",
        "-30.0 [-30.0, -30.0]",
        "30.0 [20.0, 40.0]",
        "3.0",
        "4",
    ]
    assert found[1][:5] == ["a", "`rationale`", "2", "60.0 [50.0, 70.0]", ""]
    assert found[2][:5] == ["a", "`adaptive`", "1", "60.0 [60.0, 60.0]", ""]  # not of the seeds of `rationale`
    monkeypatch.setattr(sys, "argv", ["controls_over_seeds.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "has no evaluation/controls.json" in capsys.readouterr().err
    assert json.loads((folders[0] / "evaluation" / "controls.json").read_text())["rows"]
