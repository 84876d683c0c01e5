"""Runs on CUDA that need several devices, or time: DDP and FSDP2 as one process, resume, learning in bf16."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import grace_exp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

SMALL = ["+experiment=demo_tiny", "hardware=gpu", "rollout=transformers", "logger=csv", "callbacks.export=[]"]


def run(folder: Path, *overrides: str) -> pd.DataFrame:
    """Train in a process of its own; its metrics."""
    sources = str(Path(grace_exp.__file__).parents[1])
    command = [sys.executable, "-m", "grace_exp", *SMALL, *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": sources}, timeout=600)
    return pd.read_csv(folder / "metrics.csv")


@two_devices
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_devices_train_as_one(tmp_path: Path, strategy: str) -> None:
    settings = ("hardware.precision=32-true", "job.steps=3")
    one = run(tmp_path / "one", *settings)
    two = run(tmp_path / "two", *settings, "hardware.devices=2", f"hardware.strategy={strategy}")
    for name in ("reward/total/mean", "embed/margin", "train/loss", "train/grad_norm"):
        torch.testing.assert_close(
            torch.tensor(two[name].to_numpy()), torch.tensor(one[name].to_numpy()), atol=1e-3, rtol=1e-3
        )


@two_devices
def test_a_sharded_run_goes_on_with_one_device(tmp_path: Path) -> None:
    settings = ("hardware.precision=32-true", "callbacks.checkpoint.every_n_steps=1")
    run(tmp_path / "run", *settings, "job.steps=2", "hardware.devices=2", "hardware.strategy=fsdp2")
    again = run(tmp_path / "run", *settings, "job.steps=4", f"job.resume={tmp_path / 'run'}")
    assert again["step"].tolist() == [0, 1, 2, 3]


def test_a_run_that_is_continued_has_the_metrics_of_one_that_was_not(tmp_path: Path) -> None:
    settings = ("hardware.precision=32-true", "callbacks.checkpoint.every_n_steps=1")
    whole = run(tmp_path / "whole", *settings, "job.steps=4")
    run(tmp_path / "parts", *settings, "job.steps=2")
    parts = run(tmp_path / "parts", *settings, "job.steps=4", f"job.resume={tmp_path / 'parts'}")
    for name in ("reward/total/mean", "train/loss"):
        torch.testing.assert_close(
            torch.tensor(parts[name].to_numpy()), torch.tensor(whole[name].to_numpy()), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("checkpointing", ["off", "full", "selective"])
def test_a_bf16_run_learns(tmp_path: Path, checkpointing: str) -> None:
    # The settings of tests/integration/test_training_learns.py: only the choice of tokens can change the reward.
    metrics = run(
        tmp_path,
        "hardware.precision=bf16-mixed",
        f"backbone.gradient_checkpointing={checkpointing}",
        "job.steps=25",
        "job.batch_size=4",
        "rollout.group_size=8",
        "reward.terms.negative=null",
        "reward.terms.consistency=null",
        "reward.terms.hard_negative=null",
        "optim.learning_rate=0.01",
        "+backbone.lora.rank=8",
        "+backbone.lora.alpha=16",
        "backbone.pooling.layer=0",
        "backbone.pooling.region=rationale",
    )
    reward = metrics["reward/total/mean"]
    assert reward.iloc[-5:].mean() - reward.iloc[:5].mean() > 2
