"""Which jobs a sweep starts, how it starts them, and what it reports."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from grace_exp.config.compose import conf_dir
from grace_exp.tracking.result import write_result

FOLDER = Path("runs/sweeps/demo_tiny_seeds")


def jobs(folder: Path = FOLDER) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return found


def statuses(folder: Path = FOLDER) -> list[str]:
    return [job["status"] for job in jobs(folder)]


def test_the_sweep_of_the_reward_weights_is_the_grid_of_the_paper() -> None:
    """Consistency and hard-negative weight in {0, .3, .5, .7, 1} (arXiv 2510.04506)."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = ["+experiment=qwen_sup", "+sweep=reward_weights"]
        params = compose("config", overrides=overrides, return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    grid = [tuple(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]
    weights = ["0", "0.3", "0.5", "0.7", "1"]
    assert grid == [
        (f"reward.terms.consistency.weight={consistency}", f"reward.terms.hard_negative.weight={hard}")
        for consistency in weights
        for hard in weights
    ]


def test_a_failed_job_stops_no_other_and_the_same_sweep_again_runs_only_that(invoke, children, capsys) -> None:
    children.behaviour = lambda job: (-9, None) if job.overrides["seed"] == "1" else children.finish(job)
    sweep = ["+sweep=seeds", "seed=0,1,2", "optimized_metric=reward/total/mean"]
    assert invoke(*sweep) == 2
    assert children.seeds == ["0", "1", "2"]
    assert statuses() == ["finished", "failed", "finished"]
    table, report = capsys.readouterr().out.split("3 jobs: 2 finished, 1 failed.")
    assert "* highest reward/total/mean" in table
    assert [line.split()[:2] for line in table.splitlines() if "finished *" in line] == [["2", "2"]]
    assert "failed: seed=1, killed by SIGKILL (out of memory?)" in report
    assert f"{Path.cwd() / FOLDER / jobs()[1]['folder']}/output.log" in report
    assert "  | RuntimeError: no more memory\n" in report
    with (FOLDER / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["seed"], row["reward/total/mean"]) for row in rows] == [("0", "0.0"), ("1", ""), ("2", "2.0")]
    assert json.loads((FOLDER / "sweep.json").read_text())["best"] == rows[2]["folder"]

    children.behaviour = children.finish
    assert invoke("+sweep=seeds", "seed=2,1,3", "cache_dir=elsewhere") == 0
    assert children.seeds == ["0", "1", "2", "1", "3"]  # whatever their place in the sweep
    assert [job["skipped"] for job in jobs()] == [True, False, False] and set(statuses()) == {"finished"}
    assert "3 jobs, 1 finished before" in capsys.readouterr().out


def test_each_job_is_a_command_with_its_own_settings_in_its_own_folder(invoke, children) -> None:
    assert invoke("reward.terms.consistency.weight=0.25,1", "job.steps=1", "hydra.sweep.dir='odd, name'") == 0
    folders = [command.folder for command in children.commands]
    assert [folder.name[:-8] for folder in folders] == ["consistency.weight-0.25_", "consistency.weight-1_"]
    assert {folder.parent for folder in folders} == {Path.cwd() / "odd, name"}
    for command, weight in zip(children.commands, (0.25, 1), strict=True):
        consistency = command.config.reward.terms.consistency
        assert command.config.job.steps == 1 and consistency is not None and consistency.weight == weight


def test_other_settings_are_other_jobs_though_the_sweep_has_the_same_folder(invoke, children) -> None:
    assert invoke("+sweep=seeds", "seed=0") == 0
    assert invoke("+sweep=seeds", "seed=0", "job.steps=4") == 0
    assert len(children.commands) == 2 and len(list(FOLDER.glob("*/result.json"))) == 2


def test_a_signal_ends_the_sweep_and_its_job_goes_on_later_from_its_checkpoint(invoke, children, capsys) -> None:
    def stop(job: Any) -> tuple[int, int | None]:
        (job.folder / "checkpoints").mkdir()
        for step in (1, 3, 6):  # 6 is of a longer run
            (job.folder / "checkpoints" / f"step-{step:06d}.ckpt").touch()
        return 2, signal.SIGTERM

    children.behaviour = stop
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("+sweep=seeds", "seed=0,1") == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert statuses() == ["interrupted", "not started"]
    assert f"hydra.sweep.dir={Path.cwd() / FOLDER}" in capsys.readouterr().out

    children.behaviour = children.finish
    assert invoke("+sweep=seeds", "seed=0,1") == 0
    _, again, other = children.commands
    assert again.overrides["job.resume"] == f"{again.folder}/checkpoints/step-000003.ckpt"
    assert "job.resume" not in other.overrides
    assert [job["resumed"] for job in jobs()] == ["step-000003.ckpt", None]


@pytest.mark.parametrize(("step", "goes_on"), [(5, True), (6, False)], ids=["its last", "beyond its last"])
def test_a_run_goes_on_from_its_last_checkpoint_to_end_it(invoke, children, step: int, goes_on: bool) -> None:
    def stop(job: Any) -> tuple[int, int | None]:
        (job.folder / "checkpoints").mkdir(exist_ok=True)
        (job.folder / "checkpoints" / f"step-{step:06d}.ckpt").touch()
        return 1, None

    children.behaviour = stop
    for _ in range(2):
        assert invoke("+sweep=seeds", "seed=0") == 2
    assert ("job.resume" in children.commands[1].overrides) is goes_on


def test_runs_of_a_sweep_share_a_wandb_group_and_are_tagged_with_what_was_swept(invoke, children) -> None:
    assert invoke("reward.terms.consistency.weight=0.25,1", "logger=wandb", "hydra.sweep.dir='odd, name'") == 0
    wandb = [command.config.logger.wandb for command in children.commands]
    assert [settings.group for settings in wandb if settings] == ["odd, name"] * 2
    assert [settings.tags for settings in wandb if settings] == [["consistency.weight=0.25"], ["consistency.weight=1"]]


def test_group_and_tags_of_the_user_stay(invoke, children) -> None:
    assert invoke("seed=7", "logger=wandb", "logger.wandb.tags=[mine]", "logger.wandb.group=ours") == 0
    wandb = children.commands[0].config.logger.wandb
    assert wandb is not None and (wandb.group, wandb.tags) == ("ours", ["mine"])


def test_a_figure_that_no_job_gives_is_a_failure_that_names_the_nearest(invoke, children, capsys) -> None:
    assert invoke("+sweep=seeds", "seed=0", "optimized_metric=reward/totl/mean") == 2
    words = "optimized_metric=reward/totl/mean: no such figure (did you mean reward/total/mean?)"
    assert words in capsys.readouterr().out
    assert invoke("+sweep=seeds", "seed=0", "optimized_metric=reward/total/mean") == 0
    assert len(children.commands) == 1  # it is not run again for that


def test_optuna_goes_on_after_a_failed_job_and_finds_the_best(invoke, children) -> None:
    def judge(job: Any) -> tuple[int, int | None]:
        if len(children.commands) == 1:
            return 1, None
        weight = float(job.overrides["reward.terms.consistency.weight"])
        write_result(job.folder, {"reward/total/mean": weight})
        return 0, None

    children.behaviour = judge
    assert invoke("+sweep=optuna", "optimized_metric=reward/total/mean", "hydra.sweeper.n_trials=3") == 2
    folder = Path("runs/sweeps/demo_tiny_optuna")
    assert statuses(folder) == ["failed", "finished", "finished"]
    weights = [float(command.overrides["reward.terms.consistency.weight"]) for command in children.commands]
    best = children.commands[1 + (weights[2] > weights[1])]
    assert json.loads((folder / "sweep.json").read_text())["best"] == best.folder.name
    assert f"best_value: {max(weights[1:])}" in (folder / "optimization_results.yaml").read_text()
    assert all(1e-6 <= float(command.overrides["optim.learning_rate"]) <= 1e-3 for command in children.commands)


def test_of_several_processes_that_slurm_starts_for_a_job_the_first_keeps_the_books(
    invoke, children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    invoke("+sweep=seeds", "seed=0")
    assert len(children.commands) == 1
    assert list(FOLDER.glob("*/job.json")) == []
