"""Runs whose instances are drawn by difficulty."""

from pathlib import Path

import pytest

BY_DIFFICULTY = ["job.steps=4", "data.curriculum=difficulty", "data.curriculum_floor=0.01"]


def test_a_resumed_run_draws_and_trains_as_one_that_was_not_stopped(train, tmp_path: Path) -> None:
    whole = train(*BY_DIFFICULTY)
    train(*BY_DIFFICULTY, "job.steps=2", folder=tmp_path)
    train(*BY_DIFFICULTY, f"job.resume={tmp_path}", folder=tmp_path).assert_continues_as(whole)
    seen = whole.checkpoint()["GraceDataModule"]["difficulties"]["instances"]
    assert len(seen) == len({*whole.samples["instance"]})
    assert whole.figure("curriculum/seen_share") == sorted(whole.figure("curriculum/seen_share"))


def test_every_instance_that_was_judged_is_noted_exchanged_ones_too(train) -> None:
    exchanging = ["rollout.max_tokens=1", "reward.truncation.mode=absolute", "+objective.dynamic_sampling.max_rounds=2"]
    run = train(*BY_DIFFICULTY, *exchanging, "job.steps=1", "data.distinct_texts=false")
    batch = len({*run.samples["instance"]})
    seen = run.checkpoint()["GraceDataModule"]["difficulties"]["instances"]
    assert len(seen) == batch + run.figure("rollout/zero_spread_dropped")[0]


def test_without_it_a_run_is_what_it_was(train) -> None:
    floor = train("job.steps=2", "data.curriculum_floor=0.5")
    floor.assert_continues_as(train("job.steps=2"))
    assert not [name for name in floor.metrics if name.startswith("curriculum/")]


def test_methods_without_ranks_of_rationales_are_refused(train) -> None:
    with pytest.raises(Exception, match=r"data\.curriculum=difficulty with method=contrastive"):
        train("method=contrastive", "data.curriculum=difficulty")
    with pytest.raises(Exception, match=r"data\.curriculum=difficulty with job.batch_size=1"):
        train("job.batch_size=1", "objective.mini_batch_size=1", "data.curriculum=difficulty")
