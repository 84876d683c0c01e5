"""Sweeps with their real jobs: killed and started again, a job that fails, several at a time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grace_exp

SOURCES = str(Path(grace_exp.__file__).parents[1])
SMALL = ["+experiment=demo_tiny", "hardware.threads=1", "rollout.group_size=3", "rollout.max_tokens=6"]
QUICK = ["callbacks.export=[]", "callbacks.checkpoint.every_n_steps=1", "logger.samples_every_n_steps=0"]
GRID = ["+sweep=reward_weights", "reward.terms.consistency.weight=0,1", "reward.terms.hard_negative.weight=0,1"]
SIDE_BY_SIDE = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
LONG = 600


@contextlib.contextmanager
def started(place: Path, *overrides: str) -> Iterator["subprocess.Popen[str]"]:
    """Starts a sweep in `place`; nothing of it outlives the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]),
        "GRACE_EXP_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "grace_exp", "-m", *SMALL, *QUICK, *overrides],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def jobs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return found


def test_a_sweep_that_was_killed_half_way_runs_only_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweeps" / "demo_tiny_reward_weights"
    sweep = [*GRID, "job.steps=12"]
    with started(tmp_path, *sweep) as first:
        end = time.monotonic() + LONG
        while len(list(folder.glob("*/checkpoints/step-000001.ckpt"))) + len(list(folder.glob("*/result.json"))) < 2:
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        first.kill()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert len(before) == 1

    with started(tmp_path, *sweep, *SIDE_BY_SIDE) as second:
        out, err = second.communicate(timeout=LONG)
    assert (second.returncode, err) == (0, "")
    assert "4 jobs, 1 finished before" in out and "4 jobs: 4 finished." in out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    done = jobs(folder)
    weights = [tuple(job["swept"].values()) for job in done]
    assert weights == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert [job["skipped"] for job in done] == [True, False, False, False]
    assert done[1]["resumed"].startswith("step-0000")
    summaries = [json.loads((folder / job["folder"] / "summary.json").read_text()) for job in done]
    assert {summary["steps"] for summary in summaries} == {12}


def test_side_by_side_a_job_that_fails_stops_no_other(tmp_path: Path) -> None:
    rows = [json.dumps({"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"}) + "\n" for i in range(4)]
    (tmp_path / "good.jsonl").write_text("".join(rows))
    (tmp_path / "bad.jsonl").write_text("".join(rows) + "{broken\n")
    data = ["data=triplets", "data.sources.file.path=bad.jsonl,good.jsonl", "job.steps=1", "hydra.sweep.dir=out"]
    with started(tmp_path, *data, *SIDE_BY_SIDE) as sweep:
        out, _ = sweep.communicate(timeout=LONG)
    assert sweep.returncode == 2
    bad, good = jobs(tmp_path / "out")
    assert (bad["status"], bad["exit_code"], good["status"]) == ("failed", 2, "finished")
    assert "2 jobs: 1 failed, 1 finished." in out
    assert (
        f"failed: data.sources.file.path=bad.jsonl, exit code 2\n  {tmp_path}/out/{bad['folder']}/output.log\n" in out
    )
    assert "  | grace-exp: data.sources.file: bad.jsonl, line 5: broken JSON" in out
    assert "reward/total/mean" in good["figures"]
