"""What a sweep refuses before its first job."""

import json
from pathlib import Path

import pytest


def test_an_impossible_job_is_named_and_none_starts(invoke, children, capsys) -> None:
    assert invoke("rollout.group_size=2,1") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("grace-exp: job #1 (+experiment=demo_tiny rollout.group_size=1): these settings cannot")
    assert "rollout.group_size=1: an advantage compares" in errors and "#0" not in errors
    assert children.commands == []


def test_jobs_with_the_same_fault_share_a_message(invoke, children, capsys) -> None:
    assert invoke("seed=0,1", "job.batch_size=3") == 2
    errors = capsys.readouterr().err
    assert errors.count("job.batch_size=3 is not a multiple") == 1 and "#0 (" in errors and "#1 (" in errors
    assert children.commands == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward.tempratur=1,2"], "reward.tempratur: unknown key (did you mean reward.temperature?)"),
        (["seed=0,1", "job.resume=runs/x"], "job.resume in a sweep of training runs: leave it out"),
        (["seed=0,1", "hardware.nodes=2", "hardware.strategy=ddp"], "hardware.nodes=2: a sweep starts runs of several"),
        (["+sweep=optuna"], "optimized_metric=val/stsb/rationale, but evaluation=none has no set 'stsb'"),
        (["+sweep=optuna", "optimized_metric=null"], "optimized_metric=null: say which figure the sweeper optimises"),
        (
            ["+sweep=optuna", "optimized_metric=train/loss", "rollout.group_size=range(1, 4)"],
            "rollout.group_size=1: an advantage compares",
        ),
    ],
)
def test_settings_that_no_job_can_use(invoke, children, capsys, overrides: list[str], words: str) -> None:
    assert invoke(*overrides) == 2
    assert words in capsys.readouterr().err
    assert children.commands == []


def test_a_sweep_without_a_preset_gets_a_folder_of_its_own_that_can_be_named(invoke, children) -> None:
    assert invoke("seed=0,1") == 0
    assert {command.folder.parent.parent for command in children.commands} == {Path.cwd() / "runs" / "sweeps"}
    assert invoke("seed=0,1", "hydra.sweep.dir=mine") == 0
    assert len(json.loads(Path("mine/sweep.json").read_text())["jobs"]) == 2
