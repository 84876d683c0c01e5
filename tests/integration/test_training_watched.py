"""Held-out figures during training, the best checkpoint, and steps without a reward."""

import json
import math

import pytest
import torch

from grace_exp.reward import EmbeddingError
from grace_exp.training.step import rewards

HELDOUT = [
    "evaluation=demo",
    "~evaluation.sets.stsb",
    "evaluation.sets.wordnet.size=8",
    "evaluation.minilm=false",
]
MONITOR = "callbacks.checkpoint.monitor"


def test_the_best_step_by_a_held_out_figure_is_kept(train, tmp_path) -> None:
    every = [*HELDOUT, "evaluation.every_n_steps=1", f"{MONITOR}=val/wordnet/rationale", "optim.learning_rate=0.02"]
    run = train("job.steps=4", *every, "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=9")
    figures = run.figure("val/wordnet/rationale")
    best = torch.load(run.path / "checkpoints" / "best.ckpt", weights_only=True)
    at = best["grace"]["completed_steps"]
    assert figures[at - 1] == max(figures) and figures.index(max(figures)) == at - 1
    step = torch.load(run.path / "checkpoints" / f"step-{at:06d}.ckpt", weights_only=True)
    torch.testing.assert_close(best["state_dict"], step["state_dict"], rtol=0, atol=0)
    assert [row["val/wordnet/rationale"] for row in run.checkpoint()["grace"]["history"]] == figures
    after = json.loads((run.path / "evaluation" / "after.json").read_text())["wordnet"]
    assert after["rationale"]["figure"] == pytest.approx(figures[-1])  # measured once

    # Measuring changes no step, and a resumed run measures the rest.
    plain = train("job.steps=4", "optim.learning_rate=0.02")
    torch.testing.assert_close(plain.weights, run.weights, rtol=0, atol=0)
    train("job.steps=2", *every, folder=tmp_path)
    train("job.steps=4", *every, f"job.resume={tmp_path}", folder=tmp_path).assert_continues_as(run)
    again = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert again["grace"]["completed_steps"] == at


def test_the_best_step_by_the_label_free_figure_is_kept(train) -> None:
    run = train("job.steps=3", f"{MONITOR}=embed/augmentation_overlap")
    figures = run.figure("embed/augmentation_overlap")
    best = torch.load(run.path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["grace"]["completed_steps"] - 1 == figures.index(min(figures))
    assert run.checkpoints == ["best.ckpt", "step-000003.ckpt"]


def test_figures_from_before_are_dropped_when_the_sets_have_changed(train, tmp_path) -> None:
    train("job.steps=1", *HELDOUT, folder=tmp_path)
    train("job.steps=2", *HELDOUT, "evaluation.sets.wordnet.size=6", f"job.resume={tmp_path}", folder=tmp_path)
    heldout = json.loads((tmp_path / "summary.json").read_text())["heldout"]["wordnet"]
    assert "after" in heldout and not {"before", "rise"} & heldout.keys()


@pytest.fixture
def broken_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compose, calls = rewards.compose_reward, iter(range(1, 100))

    def breaking(*arguments):
        if next(calls) == 2:
            raise EmbeddingError("group 0: the embedding of rollout 0 is zero")
        return compose(*arguments)

    monkeypatch.setattr(rewards, "compose_reward", breaking)


SETTINGS = ["job.steps=3", "objective.mini_batch_size=2", "optim.schedule=linear"]


def test_an_embedding_without_direction_ends_the_run(train, broken_second_step) -> None:
    with pytest.raises(EmbeddingError, match="rollout 0 is zero"):
        train(*SETTINGS)


def test_told_to_skip_it_costs_the_step_s_updates(train, broken_second_step) -> None:
    run = train(*SETTINGS, "optim.on_nonfinite=skip", "callbacks.progress=lines")
    assert run.figure("train/skipped_updates") == [0, 2, 2]
    assert math.isnan(run.figure("reward/total/mean")[1]) and math.isfinite(run.figure("reward/total/mean")[2])
    rates = run.figure("train/learning_rate")  # they fall by the schedule, whether an update is made or not
    assert rates[2] == pytest.approx(rates[0] * (2 + 1) / (6 + 5))
    assert run.checkpoint()["global_step"] == 4
    (path,) = (run.path / "nonfinite").iterdir()
    kept = json.loads(path.read_text())
    assert kept["step"] == 1 and "rollout 0 is zero" in kept["error"] and len(kept["instances"]) == 4
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["skipped_updates"] == 2
