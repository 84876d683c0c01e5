"""Runs of several processes that share gradients or weights: what they hold, and that they train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import grace_exp

SOURCES = str(Path(grace_exp.__file__).parents[1])
SCRIPT = Path(__file__).with_name("several_processes.py")
DDP = ["hardware.devices=2", "hardware.strategy=ddp"]


def run_together(place: Path, processes: int, small: list[str], **runs: list[str]) -> None:
    """Runs of these overrides one after another in a group of so many processes, each into its subfolder."""
    asked = [
        {"folder": str(place / name), "overrides": [*small, f"cache_dir={place / 'cache'}", *overrides]}
        for name, overrides in runs.items()
    ]
    (place / "runs.json").write_text(json.dumps(asked))
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    done = subprocess.run(
        [sys.executable, *launcher, "--rdzv-endpoint=localhost:0", str(SCRIPT), str(place / "runs.json")],
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """The folders of all runs of two processes."""
    place = tmp_path_factory.mktemp("two")
    micro_batches = ["job.steps=2", "objective.mini_batch_size=2", "hardware.train_tokens=60"]
    run_together(place, 2, small, ddp=[*DDP, *micro_batches])
    return place


def test_gradients_of_ddp_have_one_place_in_memory(two: Path) -> None:
    assert json.loads((two / "ddp" / "gradients.json").read_text()) == 1
