"""The job that explains similarities."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = ["+experiment=demo_tiny", "hardware.threads=1", "rollout.max_tokens=6"]


def test_explain_writes_a_page_and_the_same_numbers_as_json(invoke: Callable[..., int], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"text_a": "A cat sleeps.", "text_b": "Rain in May"}\n' * 2, encoding="utf-8")
    assert invoke(*TINY, "job=explain", f"job.pairs={pairs}", "hydra.run.dir=explained") == 0
    page = (tmp_path / "explained" / "explanation.html").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "explained" / "explanation.json").read_text(encoding="utf-8"))["pairs"]
    assert len(rows) == 2
    assert all(row["total"] == pytest.approx(row["cosine"], abs=1e-5) for row in rows)
    assert f"cosine {rows[0]['cosine']:.4f}" in page


def test_explain_says_what_it_needs(invoke: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*TINY, "job=explain", "job.text_a=x") == 2
    assert "job=explain needs job.text_a and job.text_b, or a file of such pairs: job.pairs" in capsys.readouterr().err
