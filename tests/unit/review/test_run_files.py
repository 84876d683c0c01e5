"""Folders of runs: good, old, broken, foreign."""

import json
from pathlib import Path
from typing import Any

import pytest

from grace_exp.review.html_report import write_report
from grace_exp.review.run_files import UnreadableRun, read_run

METRICS = {"reward/total/mean": [0.1, float("nan"), 0.3], "reward/positive/advantage_share": [0.0, 0.0, 0.0]}


def test_values_that_json_has_not_are_none(tmp_path: Path, make_run: Any) -> None:
    run = read_run(make_run(tmp_path, METRICS))
    assert run.metrics["reward/total/mean"] == [0.1, None, 0.3] and run.last("reward/total/mean") == 0.3
    assert run.last("train/loss") is None and run.samples == [] and run.warnings == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("summary.json", "{broken", "summary.json: Expecting"),
        ("config.yaml", "a: [", "config.yaml: while parsing"),
        ("config.yaml", "a: 1\n", "not the settings of a run"),
        ("metrics.csv", "step,a\nx,1\n", "metrics.csv: invalid literal"),
        ("warnings.jsonl", "{\n", "Expecting"),
    ],
)
def test_a_broken_file_is_named_with_its_reason(
    tmp_path: Path, make_run: Any, name: str, text: str, reason: str
) -> None:
    (make_run(tmp_path, METRICS) / name).write_text(text)
    with pytest.raises(UnreadableRun, match=reason) as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_a_run_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRun, match=r"no config\.yaml and no metrics\.csv"):
        read_run(tmp_path)
    with pytest.raises(UnreadableRun, match="no such folder"):
        read_run(tmp_path / "missing")


def test_a_broken_run_among_others_is_left_out_and_named(tmp_path: Path, make_run: Any) -> None:
    good = [make_run(tmp_path / f"seed{seed}", METRICS, seed=seed, weight=0.5 + seed) for seed in (0, 1)]
    broken = make_run(tmp_path / "broken", METRICS)
    (broken / "samples").mkdir()
    (broken / "samples" / "step-000000.parquet").write_bytes(b"no parquet")
    page, skipped = write_report([*good, broken, tmp_path / "missing"], tmp_path / "out")
    assert [Path(line.split(": ")[0]).name for line in skipped] == ["step-000000.parquet", "missing"]
    twin = json.loads((tmp_path / "out" / "report.json").read_text())
    assert twin["kind"] == "runs" and twin["skipped"] == skipped
    assert {row["key"]: row["values"] for row in twin["differences"]} == {
        "seed": [0, 1],
        "reward.terms.positive.weight": [0.5, 1.5],
    }
    assert all(line.replace("'", "&#39;") in page.read_text() for line in skipped)
    with pytest.raises(UnreadableRun, match="nothing to report"):
        write_report([tmp_path / "missing"], tmp_path / "out")


def test_a_weight_that_trained_nothing_is_warned_of_afterwards(tmp_path: Path, make_run: Any) -> None:
    write_report([make_run(tmp_path, METRICS)], tmp_path)
    (warning,) = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert warning["kind"] == "inert_term" and "reward.terms.positive had no share" in warning["message"]


def test_text_of_the_users_is_no_markup(tmp_path: Path, make_run: Any) -> None:
    make_run(tmp_path, METRICS)
    (tmp_path / "warnings.jsonl").write_text(
        json.dumps({"step": 1, "kind": "x", "message": "<script>alert(1)</script>"})
    )
    page, _ = write_report([tmp_path], tmp_path)
    assert "<script>alert" not in page.read_text() and "&lt;script&gt;alert" in page.read_text()


def test_a_long_run_stays_small(tmp_path: Path, make_run: Any) -> None:
    names = [f"reward/t{number}/mean" for number in range(60)]
    csv = "step," + ",".join(names) + "\n"
    csv += "".join(f"{step}," + ",".join([repr(step / 7 + 1e-9)] * 60) + "\n" for step in range(5000))
    (make_run(tmp_path, METRICS) / "metrics.csv").write_text(csv)
    page, _ = write_report([tmp_path], tmp_path)
    assert page.stat().st_size < 2_000_000
    chart = json.loads((tmp_path / "report.json").read_text())["charts"][0]
    assert len(chart["steps"]) == 385 and chart["steps"][0] == 6 and chart["last"]["reward/t0/mean"] == 4999 / 7 + 1e-9
