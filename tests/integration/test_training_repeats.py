"""A run does not change if it is repeated, cut into other micro-batches, or has other files in its folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from grace_exp.data.wordnet import load_wordnet
from grace_exp.errors import ConfigError

STEPS = ["job.steps=3", "objective.mini_batch_size=2"]


def test_equal_settings_give_equal_results_and_another_seed_does_not(train) -> None:
    first, again, other = train(*STEPS), train(*STEPS), train(*STEPS, "seed=1")
    again.assert_continues_as(first)
    assert not first.metrics.equals(other.metrics)
    assert {"reward/total/mean", "embed/margin", "rollout/tokens_mean", "train/loss"} <= set(first.metrics)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (["hardware.train_tokens=40", "hardware.score_tokens=40"], 1e-6),
        (["hardware.max_row_tokens=60"], 1e-5),
        (["hardware.packing=false"], 1e-5),
        (["hardware.keep_forward=false"], 1e-6),
        (["hardware.train_tokens=40"], 1e-6),  # of forwards that are kept, as `auto` does here
        (["hardware.keep_forward=false", "hardware.train_tokens=40"], 1e-6),
        (["hardware.one_pass=false"], 1e-5),
        (["hardware.linear=onednn"], 1e-5),
        (["hardware.linear=torch"], 1e-5),
        (["hardware.logprob_chunk_tokens=3"], 1e-6),
        (["rollout.batch_tokens=300", "prompt.max_tokens=100"], 1e-5),
    ],
    ids=lambda change: change[0].partition("=")[0] if isinstance(change, list) else None,
)
def test_how_the_work_is_cut_does_not_change_the_weights(train, whole, change: list[str], tolerance: float) -> None:
    cut = train(*BATCH, *change)
    torch.testing.assert_close(cut.weights, whole.weights, rtol=0, atol=tolerance)
    assert cut.figure("reward/total/mean") == pytest.approx(whole.figure("reward/total/mean"), abs=1e-4)
    assert cut.figure("train/loss") == pytest.approx(whole.figure("train/loss"), abs=1e-5)


# One step: later ones would multiply the rounding of the first through the sampling. AdamW's first update is
# lr x sign(gradient) where epsilon is small against the gradient, so epsilon is large: weights then show gradients.
BATCH = ["job.steps=1", "job.batch_size=8", "objective.mini_batch_size=8", "optim.epsilon=1", "optim.learning_rate=1"]


@pytest.fixture(scope="module")
def whole(train):
    return train(*BATCH, "hardware.train_tokens=100000", "hardware.score_tokens=100000")


def test_the_update_of_that_comparison_moves_the_weights(train, whole) -> None:
    untouched = train(*BATCH, "optim.learning_rate=1e-12", "optim.weight_decay=0")
    moved = [(whole.weights[name] - before).abs().max().item() for name, before in untouched.weights.items()]
    assert max(moved) > 1e-2  # a thousand times the tolerance


def test_mini_batches_are_updates_of_their_own(train) -> None:
    once = train("job.steps=2", "objective.mini_batch_size=4")
    twice = train("job.steps=2", "objective.mini_batch_size=2")
    assert (once.checkpoint()["global_step"], twice.checkpoint()["global_step"]) == (2, 4)
    assert once.figure("train/clipped")[0] == 0 and once.figure("train/ratio")[0] == pytest.approx(1, abs=1e-5)
    assert twice.figure("train/ratio")[0] != pytest.approx(1, abs=1e-5)  # the second update's policy has moved
    assert once.figure("reward/total/mean")[0] == twice.figure("reward/total/mean")[0]


def test_the_learning_rate_that_is_logged_is_the_one_that_was_used(train) -> None:
    run = train(
        "job.steps=4", "optim.schedule=linear", "optim.warmup_steps=2", "optim.learning_rate=0.001"
    )  # updates at 0, 1/2, 1 and 1/2 of it: transformers' linear schedule
    assert run.figure("train/learning_rate") == pytest.approx([0, 0.0005, 0.001, 0.0005])


def test_one_instance_a_step_trains_and_is_shown(train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("job.steps=1", "job.batch_size=1", "objective.mini_batch_size=1", "callbacks.progress=lines")
    assert "embed/in_batch_accuracy" not in run.metrics
    assert "step 1/1  reward " in capsys.readouterr().out


class Crash(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch.step == 3:
            raise MemoryError("no more")


def test_a_folder_with_a_run_that_could_go_on_is_not_used_for_another(train, tmp_path: Path) -> None:
    train("job.steps=1", folder=tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(
        ConfigError, match=r"holds a run already \(step-000001\.ckpt\): continue it with .*job\.resume="
    ):
        train("job.steps=2", folder=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_folder_whose_run_ended_before_its_first_checkpoint_is_used_again(train, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        train("job.steps=4", "seed=1", folder=tmp_path, callbacks=(Crash(),))
    assert len(list((tmp_path / "samples").iterdir())) == 3
    train("job.steps=2", folder=tmp_path).assert_continues_as(train("job.steps=2"))


def test_samples_show_whole_groups_and_their_anchors(train) -> None:
    run = train("job.steps=3", "logger.samples_every_n_steps=2", "logger.samples_per_step=7")
    samples = run.samples
    assert sorted(samples["step"].unique()) == [0, 2]
    step = samples[samples["step"] == 0]
    assert step["role"].tolist() == ["positive"] * 6 + ["query"] * 2 + ["negative"] * 2  # 7 hold 2 groups of 3
    groups = step[step["role"] == "positive"].groupby("instance")
    assert groups["advantage"].sum().abs().max() < 1e-4
    assert step.loc[step["role"] != "positive", "advantage"].isna().all()
    rows = load_wordnet("train")
    for instance, group in groups:
        assert group["text"].unique().tolist() == [rows[int(instance)]["positive"]]
    trained = step[step["role"] == "positive"]
    terms = trained["positive"] + trained["negative"] + 0.2 * trained["consistency"] + 0.2 * trained["hard_negative"]
    assert trained["total"].tolist() == pytest.approx((10 * terms).tolist(), abs=1e-5)
