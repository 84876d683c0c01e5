"""The page of a sweep: cells, the best one, what failed."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from grace_exp.review.html_report import write_report
from grace_exp.review.run_files import UnreadableRun
from grace_exp.review.sweep_page import sweep_page

METRIC = "val/stsb/rationale"
KEYS = ("reward.terms.consistency.weight", "reward.terms.hard_negative.weight")


def job(number: int, swept: dict[str, str], value: float | None) -> dict[str, Any]:
    figures = {} if value is None else {METRIC: value, "reward/total/mean": value / 10}
    status = "failed" if value is None else "finished"
    error = ["grace-exp: out of memory"] if value is None else []
    return {
        "folder": f"job{number}",
        "status": status,
        "swept": swept,
        "seconds": 1.5,
        "figures": figures,
        "error": error,
    }


def sweep(folder: Path, jobs: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    about = {"started": "now", "optimized_metric": METRIC, "direction": "maximize", "best": None, "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(about))
    return folder


def grid() -> list[dict[str, Any]]:
    cells = [(a, b, seed) for a in ("0", "0.5") for b in ("0", "1") for seed in ("0", "1", "2")]
    return [
        job(number, {KEYS[0]: a, KEYS[1]: b, "seed": seed}, None if number == 3 else 50 + 10 * float(a) + number % 3)
        for number, (a, b, seed) in enumerate(cells)
    ]


def test_seeds_of_a_cell_are_averaged_and_the_best_cell_has_students_interval(tmp_path: Path) -> None:
    page = sweep_page(sweep(tmp_path / "s", grid()))
    best = page["best"]
    assert best["settings"] == [f"{KEYS[0]}=0.5", f"{KEYS[1]}=0"] and best["value"] == 56 and best["jobs"] == 3
    interval = stats.t.interval(0.95, 2, loc=56, scale=stats.sem([55, 56, 57]))
    assert (best["low"], best["high"]) == pytest.approx(interval)
    cells = {(cell["row"], cell["column"]): (cell["value"], cell["jobs"]) for cell in page["cells"]["values"]}
    assert cells == {("0", "0"): (51, 3), ("0", "1"): (51.5, 2), ("0.5", "0"): (56, 3), ("0.5", "1"): (56, 3)}


def test_a_failed_job_is_named_with_its_last_words(tmp_path: Path) -> None:
    page, _ = write_report([sweep(tmp_path / "s", grid())], tmp_path)
    (failed,) = json.loads((tmp_path / "report.json").read_text())["failed"]
    assert failed == {"folder": "job3", "status": "failed", "error": ["grace-exp: out of memory"]}
    assert "out of memory" in page.read_text() and page.read_text().count("<tr><td>") == 12


def test_one_swept_setting_has_no_heat_map_and_text_values_have_places(tmp_path: Path) -> None:
    jobs = [job(number, {"reward": name}, float(number)) for number, name in enumerate(["infonce", "paper", "mixed"])]
    page, _ = write_report([sweep(tmp_path / "s", jobs)], tmp_path)
    text = page.read_text()
    assert "A heat map needs two swept settings" in text and 'class="way' in text and ">paper</text>" in text


def test_a_broken_sweep_is_said_to_be_broken(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UnreadableRun, match="broken file of a sweep"):
        sweep_page(tmp_path)
