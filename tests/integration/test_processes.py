"""Runs in processes of their own: stopped from outside, and several for one run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

import grace_exp

SOURCES = str(Path(grace_exp.__file__).parents[1])
TWO = ["hardware=cpu", "hardware.devices=2", "hardware.strategy=ddp"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command in an empty folder, to run into its subfolder `run`."""
    started: list[subprocess.Popen[str]] = []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]),
        "GRACE_EXP_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }

    def start(*overrides: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "grace_exp", "+experiment=demo_tiny", "hydra.run.dir=run", *SMALL, *overrides]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


SMALL = [
    "hardware.threads=1",
    "rollout.group_size=3",
    "rollout.max_tokens=6",
    "callbacks.export=[]",
]


def wait_for_steps(folder: Path, steps: int, process: "subprocess.Popen[str]") -> None:
    """Returns once metrics.csv has that many rows."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if (folder / "metrics.csv").is_file() and (folder / "metrics.csv").read_text().count("\n") > steps:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{steps} steps in two minutes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_its_step_and_the_run_goes_on(train, start, tmp_path, number) -> None:
    process, folder = start("job.steps=500"), tmp_path / "run"
    wait_for_steps(folder, 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"{number.name}: stopping after this step (again: stop at once, losing it)" in out
    done = len(pd.read_csv(folder / "metrics.csv"))
    saved = folder / "checkpoints" / f"step-{done:06d}.ckpt"
    assert err == (
        f"grace-exp: stopped by {number.name} after step {done} of 500; saved {saved}\n"
        f"Continue with the same command and job.resume={folder}\n"
    )
    steps = f"job.steps={done + 1}"
    train(steps, f"job.resume={folder}").path
    resumed = train(steps)
    type(resumed)(folder).assert_continues_as(resumed)


def test_a_killed_run_goes_on_from_its_last_checkpoint(train, start, tmp_path) -> None:
    process, folder = start("job.steps=500", "callbacks.checkpoint.every_n_steps=2"), tmp_path / "run"
    wait_for_steps(folder, 3, process)
    process.kill()
    process.communicate()
    newest = max(path.name for path in (folder / "checkpoints").glob("step-*.ckpt"))
    steps = f"job.steps={int(newest[5:11]) + 3}"
    train(steps, f"job.resume={folder}")
    whole = train(steps)
    type(whole)(folder).assert_continues_as(whole)


def test_two_processes_train_as_one(train, start, tmp_path) -> None:
    settings = ["job.steps=3", "job.batch_size=4", "objective.mini_batch_size=4", "+backbone.lora.rank=4"]
    process = start(*settings, *TWO, "callbacks.export=[merged]", "logger=wandb")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == "", err
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("step ")] == [
        f"step {step}/3" for step in (1, 2, 3)
    ]
    assert out.count("demo_tiny  run folder") == out.count("Run folder:") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run"]
    folder = tmp_path / "run"
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1 and (folder / "export" / "merged").is_dir()

    one = train(*settings)
    two = type(one)(folder)
    assert two.metrics["step"].tolist() == ["0", "1", "2"]
    assert set(two.metrics) == set(one.metrics)
    for name in set(one.metrics):
        assert two.figure(name) == pytest.approx(one.figure(name), rel=1e-4, abs=1e-4), name
    torch.testing.assert_close(two.weights, one.weights, rtol=0, atol=1e-5)
    assert set(two.samples["instance"]) <= set(one.samples["instance"])


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(train, start, tmp_path) -> None:
    process, folder = start("job.steps=500", *TWO), tmp_path / "run"
    wait_for_steps(folder, 2, process)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out.count("SIGTERM: stopping after this step") == 1
    done = len(pd.read_csv(folder / "metrics.csv"))
    saved = folder / "checkpoints" / f"step-{done:06d}.ckpt"
    assert saved.is_file() and err.count("grace-exp:") == 1 and f"; saved {saved}\n" in err
    resumed = start("job.resume=run", f"job.steps={done + 1}", *TWO, "hydra.run.dir=again")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert f"step {done + 1}/{done + 1}" in out
    assert len(pd.read_csv(folder / "metrics.csv")) == done + 1
