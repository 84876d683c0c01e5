"""`make gpu-check` on a machine without a GPU: the script runs, reports, and goes on after a failure."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT))
    spec = importlib.util.spec_from_file_location("gpu_check_main", SCRIPT / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure the GPU")
def test_a_quick_part_of_it_ends_with_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--only", "A8,C1", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert report["machine"]["torch"].startswith(torch.__version__.split("+")[0])
    rounding, pair = report["checks"]
    assert (rounding["key"], rounding["verdict"]) == ("A8", "pass")
    assert any(figure["expected"] == "at most 0.001" for figure in rounding["figures"])
    assert (pair["verdict"], pair["note"]) == ("skipped", "needs two GPUs: there are 0")
    assert "| A8 | rounding of log-probs | pass |" in (tmp_path / "gpu_check.md").read_text(encoding="utf-8")


def test_a_check_that_raises_leaves_its_traceback(script: Any, tmp_path: Path) -> None:
    def broken() -> Any:
        raise ValueError("no such kernel")

    script.run_one(script.Check("A1", "title", broken, 1.0), tmp_path / "outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["verdict"] == "ERROR"
    assert "no such kernel" in outcome["note"]


@pytest.mark.parametrize(("code", "verdict"), [("", "ERROR"), ("import time; time.sleep(60)", "TIMEOUT")])
def test_a_process_that_leaves_nothing_or_hangs_is_reported(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, verdict: str
) -> None:
    (tmp_path / "__main__.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(script, "__file__", str(tmp_path / "__main__.py"))
    assert script.run_apart(script.Check("A1", "title", list, 1.0), 3.0).verdict == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.0, None, None, "seen"),
        (1.0, 0.9, 1.1, "pass"),
        (1.2, 0.9, 1.1, "FAIL"),
        (0, 0, 0, "pass"),
        (1, 0, 0, "FAIL"),
        (float("nan"), 0.0, None, "FAIL"),
        (5.0, None, 4.0, "FAIL"),
    ],
)
def test_a_figure_passes_within_its_range(script: Any, value: float, low: Any, high: Any, verdict: str) -> None:
    assert script.Figure("x", value, "", low, high).verdict == verdict


def test_every_check_has_a_key_of_its_own(script: Any) -> None:
    keys = [check.key for check in script.checks()]
    assert len(keys) == len(set(keys))
    assert {key[0] for key in keys} == {"A", "B", "C"}
