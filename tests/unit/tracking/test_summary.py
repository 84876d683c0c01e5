"""Phase times, peak memory and files that are whole."""

import json
import time
from pathlib import Path

import pytest
import torch

from grace_exp.tracking.atomic import atomic_path
from grace_exp.tracking.summary import PhaseTimer, peak_memory_gib, write_json_atomic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_phases_add_up_within_a_step_and_over_the_run(clock: list[float]) -> None:
    timer = PhaseTimer()
    for seconds in (1.0, 2.0):
        with timer("rollout"):
            clock[0] += seconds
    with timer("update"):
        clock[0] += 4.0
    assert timer.step_metrics() == {"time/rollout": 3.0, "time/update": 4.0}
    with timer("rollout"):
        clock[0] += 8.0
    assert timer.step_metrics() == {"time/rollout": 8.0}
    assert timer.step_metrics() == {}
    assert timer.totals() == {"rollout": 11.0, "update": 4.0}


def test_an_outer_phase_includes_the_inner_one(clock: list[float]) -> None:
    timer = PhaseTimer()
    with timer("step"), timer("reward"):
        clock[0] += 2.0
    assert timer.totals() == {"reward": 2.0, "step": 2.0}


def test_a_phase_that_raises_is_counted(clock: list[float]) -> None:
    timer = PhaseTimer()
    with pytest.raises(RuntimeError), timer("sync"):
        clock[0] += 3.0
        raise RuntimeError
    assert timer.totals() == {"sync": 3.0}


def test_totals_continue_after_a_resume(clock: list[float]) -> None:
    before, after = PhaseTimer(), PhaseTimer()
    with before("update"):
        clock[0] += 5.0
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    with after("update"):
        clock[0] += 1.0
    assert after.totals() == {"update": 6.0}
    assert after.step_metrics() == {"time/update": 1.0}
    assert before.totals() == {"update": 5.0}


def test_peak_memory_covers_what_was_held(request: pytest.FixtureRequest) -> None:
    held = torch.ones(256 * 2**20 // 4)  # 256 MiB
    peak = peak_memory_gib()
    assert held.numel() * 4 / 2**30 < peak["host"] < 1024
    del held
    assert peak_memory_gib()["host"] >= peak["host"]
    assert ("device" in peak) == torch.cuda.is_initialized()


def test_json_has_null_where_there_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    write_json_atomic(path, {"reward": [0.1, float("nan")], "range": (float("-inf"), 2), "text": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"reward": [0.1, None], "range": [None, 2], "text": "ü"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
