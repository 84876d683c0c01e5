"""The checks of list A that are whole runs, each in a process of its own."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from check_models import CUDA
from check_report import Figure, Skip

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ["+experiment=demo_tiny", "logger=csv", *(["hardware=gpu", "rollout=transformers"] if CUDA else [])]


def command(*overrides: str) -> list[str]:
    """Return the command of a run of the tiny random model."""
    return [sys.executable, "-m", "grace_exp", *EXPERIMENT, *overrides]


def finished(overrides: list[str], seconds: float = 600) -> Path:
    """Run to the end; return the run folder.

    Raises:
        RuntimeError: The run failed; the message has the end of its output.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    done = subprocess.run(
        command(*overrides, f"hydra.run.dir={folder}"), capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(overrides)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the metrics of a run, one row per step."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def largest_difference(one: Path, other: Path, names: tuple[str, ...]) -> float:
    """Return the largest difference of the named metrics over all steps."""
    pairs = zip(rows(one), rows(other), strict=True)
    return max(abs(float(a[name]) - float(b[name])) for a, b in pairs for name in names)


METRICS = ("reward/total/mean", "train/loss", "train/grad_norm", "rollout/tokens_mean")


def gpu_tests() -> list[Figure]:
    """Run tests/gpu."""
    if not CUDA:
        raise Skip("tests/gpu need a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "gpu")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    return [Figure("exit status", done.returncode, "", 0, 0), Figure("last line", done.stdout.strip().splitlines()[-1])]


def killed_and_resumed() -> list[Figure]:
    """Check that a run killed after a checkpoint and resumed gives the metrics of an undisturbed run."""
    settings = ["job.steps=4", "callbacks.checkpoint.every_n_steps=1"]
    whole = finished(settings)
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    process = subprocess.Popen(
        command(*settings, f"hydra.run.dir={folder}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not list((folder / "checkpoints").glob("step-*2.ckpt")):
        time.sleep(0.02)
    killed_at = len(rows(folder))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(
        command(*settings, f"job.resume={folder}"), capture_output=True, text=True, timeout=600, check=False
    )
    if resumed.returncode:
        raise RuntimeError(f"the resumed run ended with {resumed.returncode}:\n{resumed.stderr[-2000:]}")
    return [
        Figure("steps when it was killed", killed_at, "", 1, 4),
        Figure("largest difference of metrics", largest_difference(whole, folder, METRICS), "", high=1e-4),
    ]
