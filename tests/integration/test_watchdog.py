"""Runs that are made to collapse, and one that is not."""

import json

import pytest

from grace_exp.tracking.run_warnings import read_warnings
from grace_exp.training.callbacks.watchdog import Collapsed

WATCHED = ["callbacks.watchdog.patience=2", "callbacks.watchdog.start_steps=2", "job.steps=16"]
BASE = [
    "+experiment=demo_tiny",
    "hardware.threads=1",
    "callbacks.progress=none",
    "callbacks.export=[]",
    "rollout.max_tokens=8",
    "logger.evolution_every_n_steps=0",
    "callbacks.report=false",
]
# Pulled to their anchors and pushed away from nothing: one embedding for everything has the highest reward.
EXPLOIT = [
    "reward.terms.negative=null",
    "reward.terms.hard_negative=null",
    "optim.learning_rate=0.005",
    "rollout.group_size=8",
]


def kinds(run) -> set[str]:
    return {row["kind"] for row in read_warnings(run.path) if row["kind"].startswith("watchdog/")}


def test_a_learning_rate_far_too_high_ends_in_one_rationale_for_many_texts(train, capsys) -> None:
    run = train(*WATCHED, "optim.learning_rate=0.3", base=BASE)
    found = [row["kind"] for row in read_warnings(run.path) if row["kind"].startswith("watchdog/")]
    assert len(found) == len(set(found))
    assert {"watchdog/effective_rank", "watchdog/entropy", "watchdog/common_rationale"} <= set(found)
    assert capsys.readouterr().out.count("watchdog: one rationale for many texts") == 1


def test_a_reward_with_an_exploit_is_found_out_and_ends_the_run_with_the_best_checkpoint_kept(train, tmp_path) -> None:
    best = ["callbacks.checkpoint.monitor=embed/augmentation_overlap", "callbacks.watchdog.stop=true"]
    with pytest.raises(Collapsed, match=r"callbacks\.watchdog\.stop=true after step \d+ of 16: .*\n.*best\.ckpt"):
        train(*WATCHED, *EXPLOIT, *best, "callbacks.report=true", folder=tmp_path, base=BASE)
    (warning,) = [row for row in read_warnings(tmp_path) if row["kind"].startswith("watchdog/")]
    assert warning["kind"] == "watchdog/effective_rank"
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == {"best.ckpt", f"step-{warning['step'] + 1:06d}.ckpt"}
    twin = json.loads((tmp_path / "report.json").read_text())
    assert not twin["finished"] and warning in twin["warnings"]


def test_a_healthy_run_has_no_warning(train) -> None:
    assert kinds(train("job.steps=8", base=BASE)) == set()
