"""Runs of several processes that share gradients or weights: what they hold, and that they train as one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import grace_exp

SOURCES = str(Path(grace_exp.__file__).parents[1])
SCRIPT = Path(__file__).with_name("several_processes.py")
STEADY = [  # so large an epsilon that rounding in a gradient near zero cannot turn an update around
    "optim.learning_rate=0.003",
    "optim.epsilon=0.01",
    "job.steps=3",
]
# Token budgets so small that the processes have different numbers of micro-batches.
SMALL_BATCHES = ["hardware.train_tokens=80", "hardware.score_tokens=100"]
FULL = [
    *STEADY,
    *SMALL_BATCHES,
    "job.batch_size=8",
    "objective.mini_batch_size=4",
    "objective.kl.coefficient=0.1",
]
RUNS = {
    "full": [
        *FULL,
        "backbone.gradient_checkpointing=full",
        "callbacks.export=[merged]",
        "evaluation=demo",
        "evaluation.minilm=false",
        "~evaluation.sets.stsb",
        "evaluation.sets.wordnet.size=7",
    ],
    "sides": [
        *STEADY,
        *SMALL_BATCHES,
        "objective=copg",
        "objective.mini_batch_size=4",
        "objective.replay.share=0.5",
        "rollout.policy_role=both",
        "data=wordnet_mixed",
        "reward=mixed",
        "reward.encoder.kind=ema",
        "reward.encoder.decay=0.5",
        "+backbone.lora.rank=4",
        "backbone.gradient_checkpointing=selective",
        "callbacks.export=[adapter,merged]",
    ],
    "contrastive": [*STEADY, "hardware.train_tokens=80", "method=contrastive", "optim.max_grad_norm=0.01"],
    "kept": [*STEADY, "hardware.train_tokens=80", "hardware.keep_forward=true", "objective.mini_batch_size=4"],
    "ddp": ["hardware.strategy=ddp", "hardware.train_tokens=80", "objective.mini_batch_size=2"],
}
SHARDED = [name for name in RUNS if name != "ddp"]


def together(place: Path, processes: int, small: list[str], runs: dict[str, list[str]]) -> None:
    """Runs of these overrides one after another in a group of so many processes, each into its subfolder."""
    several = [f"hardware.devices={processes}", "hardware.strategy=fsdp2", f"cache_dir={place / 'cache'}"]
    asked = [{"folder": str(place / name), "overrides": [*small, *several, *runs[name]]} for name in runs]
    (place / "runs.json").write_text(json.dumps(asked))
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    done = subprocess.run(
        [sys.executable, *launcher, "--rdzv-endpoint=localhost:0", str(SCRIPT), str(place / "runs.json")],
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """The folders of `RUNS`, each of two processes."""
    place = tmp_path_factory.mktemp("sharded")
    together(place, 2, small, RUNS)
    return place


@pytest.fixture(scope="module")
def one(train: Any) -> Any:
    """Any of `RUNS` on one process."""
    done: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in done:
            done[name] = train(*RUNS[name])
        return done[name]

    return run


def assert_trained_as(found: Any, expected: Any) -> None:
    """Weights and moments within 1e-6, and the metrics."""
    mine, its = found.checkpoint(), expected.checkpoint()
    torch.testing.assert_close(mine["state_dict"], its["state_dict"], rtol=0, atol=1e-6)
    torch.testing.assert_close(mine["optimizer_states"], its["optimizer_states"], rtol=1e-3, atol=1e-6)
    assert mine["lr_schedulers"] == its["lr_schedulers"]
    assert set(found.metrics) == set(expected.metrics)
    for name in (name for name in expected.metrics if not name.startswith("val/")):
        assert found.figure(name) == pytest.approx(expected.figure(name), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_processes_train_as_one(sharded: Path, one: Any, name: str) -> None:
    expected = one(name)
    assert_trained_as(type(expected)(sharded / name), expected)


def test_a_run_of_two_sharded_processes_goes_on_with_one_or_four(
    sharded: Path, one: Any, train: Any, small: list[str], tmp_path: Path
) -> None:
    more = [*FULL, "job.steps=4", "evaluation=none"]
    folders = {name: tmp_path / name for name in ("alone", "four", "expected")}
    for name, folder in folders.items():
        shutil.copytree(one("full").path if name == "expected" else sharded / "full", folder)
    together(tmp_path, 4, small, {"four": [*more, f"job.resume={folders['four']}"]})
    expected, alone = (
        train(*more, f"job.resume={folders[name]}", folder=folders[name]) for name in ("expected", "alone")
    )
    assert expected.checkpoint()["grace"]["completed_steps"] == 4
    assert_trained_as(alone, expected)
    assert_trained_as(type(expected)(folders["four"]), expected)


def test_gradients_of_ddp_have_one_place_in_memory(sharded: Path) -> None:
    assert json.loads((sharded / "ddp" / "gradients.json").read_text()) == 1


def test_sharded_processes_share_the_moving_average_and_export_it_whole(sharded: Path, one: Any) -> None:
    expected = one("sides")
    found = type(expected)(sharded / "sides")
    mine, its = (run.checkpoint()["grace"]["encoder"] for run in (found, expected))
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    for name in ("adapter/adapter_model", "merged/model"):
        mine, its = (load_file(run.path / "export" / f"{name}.safetensors") for run in (found, expected))
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


def test_sharded_processes_evaluate_and_export_as_one(sharded: Path, one: Any) -> None:
    expected = one("full")
    found = type(expected)(sharded / "full")
    mine, its = (load_file(run.path / "export" / "merged" / "model.safetensors") for run in (found, expected))
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    configs = [(run.path / "export" / "merged" / "config.json").read_text() for run in (found, expected)]
    assert configs[0] == configs[1]
    for moment in ("before", "after"):
        both = [json.loads((run.path / "evaluation" / f"{moment}.json").read_text()) for run in (found, expected)]
        assert both[0]["wordnet"]["examples"] == both[1]["wordnet"]["examples"]
        assert both[0]["wordnet"]["rationale"]["values"] == pytest.approx(both[1]["wordnet"]["rationale"]["values"])
