"""Runs in processes of their own: stopped by signals, and with several processes for one run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import grace_exp

SOURCES = str(Path(grace_exp.__file__).parents[1])
SMALL = ["hardware.threads=1", "rollout.group_size=3", "rollout.max_tokens=6"]
TWO = [
    "hardware.devices=2",
    "hardware.strategy=ddp",
    "objective.mini_batch_size=2",  # each takes one of its two instances
    "objective.pathwise={weight: 1, parts_every_n_steps: 1}",
    "+backbone.lora.rank=4",
    "optim.learning_rate=0.01",
    "optim.epsilon=0.001",  # so large that rounding in a gradient near zero cannot turn an update around
    "evaluation=demo",
    "evaluation.minilm=false",
    "~evaluation.sets.stsb",
    "evaluation.sets.wordnet.size=7",
]


@dataclass
class Command:
    """A started command."""

    process: "subprocess.Popen[str]"
    folder: Path
    out: str = ""
    err: str = ""

    def wait(self, timeout: float = 300) -> int:
        """Reads the output to its end and returns the exit code."""
        self.out, self.err = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def wait_for_steps(self, steps: int) -> None:
        """Returns when metrics.csv has that many trained steps. The figures before training have a row too."""
        metrics, end = self.folder / "metrics.csv", time.monotonic() + 400
        while not metrics.is_file() or pd.read_csv(metrics).get("time/step", pd.Series(dtype=float)).count() < steps:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)


@contextlib.contextmanager
def started(place: Path, *overrides: str, program: Sequence[str] = ("-m", "grace_exp")) -> Iterator[Command]:
    """Starts a run in `place`, into its subfolder `run`; nothing of it outlives the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]),
        "GRACE_EXP_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    arguments = ["+experiment=demo_tiny", "hydra.run.dir=run", *SMALL, *overrides]
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Command(process, place / "run")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def steps_in(folder: Path) -> int:
    return len(pd.read_csv(folder / "metrics.csv"))


def steps_shown(out: str) -> list[str]:
    return [line.split()[1] for line in out.splitlines() if line.startswith("step ")]


def test_a_signal_ends_the_process_after_its_step_and_the_run_goes_on(train, tmp_path: Path) -> None:
    with started(tmp_path, "job.steps=500") as run:
        run.wait_for_steps(2)
        run.process.terminate()
        assert run.wait() == 2
    assert "SIGTERM: stopping after this step (again: stop at once, losing it)" in run.out
    done = steps_in(run.folder)
    assert run.err == (
        f"grace-exp: stopped by SIGTERM after step {done} of 500; saved "
        f"{run.folder / 'checkpoints' / f'step-{done:06d}.ckpt'}\n"
        f"Continue with the same command and job.resume={run.folder}\n"
    )
    train(f"job.steps={done + 1}", f"job.resume={run.folder}")
    whole = train(f"job.steps={done + 1}")
    type(whole)(run.folder).assert_continues_as(whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint(train, tmp_path: Path) -> None:
    with started(tmp_path, "job.steps=500", "callbacks.checkpoint.every_n_steps=2") as run:
        run.wait_for_steps(3)
        run.process.kill()
    newest = max(path.name for path in (run.folder / "checkpoints").glob("step-*.ckpt"))
    steps = f"job.steps={int(newest[5:11]) + 3}"
    train(steps, f"job.resume={run.folder}")
    whole = train(steps)
    type(whole)(run.folder).assert_continues_as(whole)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two processes: stopped by Ctrl-C, which reaches both, and continued for one more step."""
    place = tmp_path_factory.mktemp("two")
    with started(place, *TWO, "logger=wandb", "job.steps=500", "callbacks.export=[merged]") as first:
        first.wait_for_steps(1)
        os.killpg(first.process.pid, signal.SIGINT)
        code = first.wait()
    done = steps_in(first.folder)
    checkpoints = [path.name for path in (first.folder / "checkpoints").iterdir()]
    more = ["job.resume=run", f"job.steps={done + 1}", "callbacks.export=[merged]"]
    with started(place, *TWO, "logger=wandb", *more) as second:
        assert second.wait() == 0, second.err
    return SimpleNamespace(
        place=place, folder=first.folder, first=first, code=code, done=done, checkpoints=checkpoints, second=second
    )


def test_ctrl_c_stops_two_processes_after_the_same_step(two: SimpleNamespace) -> None:
    assert two.code == 2
    assert two.first.out.count("SIGINT: stopping after this step") == 1
    assert two.checkpoints == [f"step-{two.done:06d}.ckpt"]
    assert two.first.err.startswith(f"grace-exp: stopped by SIGINT after step {two.done} of 500; saved ")
    assert len(two.first.err.splitlines()) == 2


def test_two_processes_speak_and_write_as_one(two: SimpleNamespace) -> None:
    assert steps_shown(two.first.out) == [f"{step}/500" for step in range(1, two.done + 1)]
    assert steps_shown(two.second.out) == [f"{two.done + 1}/{two.done + 1}"]
    assert two.first.out.count("  run folder ") == two.second.out.count("  run folder ") == 1
    assert two.second.out.count("Run folder: ") == 1 and two.second.err == ""
    assert sorted(path.name for path in two.place.iterdir()) == ["cache", "run"]
    assert len(list(two.folder.glob("wandb/offline-run-*"))) == 2  # one a command
    assert (two.folder / "summary.json").is_file() and (two.folder / "export" / "merged").is_dir()


def test_two_processes_train_as_one(train, two: SimpleNamespace) -> None:
    alone = ["hardware.devices=1", "hardware.strategy=auto"]
    one = train(*TWO, *alone, f"job.steps={two.done + 1}")
    found = type(one)(two.folder)
    assert found.metrics["step"].tolist() == one.metrics["step"].tolist()
    assert set(found.metrics) == set(one.metrics)
    for name in one.metrics.drop(columns=[name for name in one.metrics if name.startswith("val/")]):
        assert found.figure(name) == pytest.approx(one.figure(name), rel=1e-4, abs=1e-4), name
    torch.testing.assert_close(found.weights, one.weights, rtol=0, atol=1e-5)
    for moment in ("before", "after"):
        both = [json.loads((run.path / "evaluation" / f"{moment}.json").read_text())["wordnet"] for run in (found, one)]
        assert both[0]["examples"] == both[1]["examples"]
        assert both[0]["rationale"]["values"] == pytest.approx(both[1]["rationale"]["values"])
    assert set(found.samples["instance"]) < set(one.samples["instance"])  # the first process shows its own


FAILS = """
import os, time
from pathlib import Path

import grace_exp.__main__ as command
from grace_exp.training.grace import GraceModule

def step(module, batch):
    Path(f"process-{module.global_rank}").write_text(str(os.getpid()))
    while len(list(Path.cwd().glob("process-*"))) < 2:
        time.sleep(0.1)
    if module.global_rank == 0:
        raise RuntimeError("of the first process")
    time.sleep(600)  # as one that waits for the others in NCCL, which does not see that they are gone

if __name__ == "__main__":
    GraceModule.step = step
    command.main()
"""


def test_when_the_first_process_fails_no_other_stays(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    two = ["hardware.devices=2", "hardware.strategy=ddp", "objective.mini_batch_size=2", "evaluation=none"]
    with started(tmp_path, *two, program=[str(script)]) as run:
        end = time.monotonic() + 120
        while len(found := list(tmp_path.glob("process-*"))) < 2 or not all(path.read_text() for path in found):
            assert run.process.poll() is None and time.monotonic() < end, run.process.communicate()
            time.sleep(0.1)
        numbers = [int(path.read_text()) for path in found]
        assert run.wait(timeout=30) == 1
        assert "RuntimeError: of the first process" in run.err
    assert not [number for number in numbers if Path(f"/proc/{number}").exists()]


SIDES = [
    "job.steps=2",
    "data.curriculum=difficulty",
    "objective=copg",
    "objective.mini_batch_size=2",
    "objective.replay.share=1",
    "rollout.policy_role=both",
    "data=wordnet_mixed",
    "reward=mixed",
    "reward.encoder.kind=ema",
    "reward.encoder.decay=0.5",
    "+backbone.lora.rank=4",
    "optim.learning_rate=0.01",
    "optim.epsilon=0.001",
    "callbacks.export=[]",
]


def test_two_processes_train_both_sides_of_mixed_batches_and_stored_instances_as_one(train, tmp_path: Path) -> None:
    with started(tmp_path, *SIDES, "hardware.devices=2", "hardware.strategy=ddp") as two:
        assert two.wait() == 0, two.err
    one = train(*SIDES)
    found = type(one)(two.folder)
    assert found.figure("rollout/stored") == one.figure("rollout/stored") == [0, 4]
    assert set(found.metrics) == set(one.metrics)
    for name in one.metrics:
        assert found.figure(name) == pytest.approx(one.figure(name), rel=1e-4, abs=1e-4), name
    torch.testing.assert_close(found.weights, one.weights, rtol=0, atol=1e-5)
    data = [run.checkpoint()["GraceDataModule"]["difficulties"] for run in (found, one)]
    torch.testing.assert_close(*data, rtol=0, atol=0)
    mine, its = (run.checkpoint()["grace"] for run in (found, one))
    torch.testing.assert_close(mine["encoder"], its["encoder"], rtol=0, atol=1e-5)
    assert [row["instance"] for row in mine["stored"]] == [row["instance"] for row in its["stored"]]
