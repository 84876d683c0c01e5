"""Every file of conf/objective/ trains a step of the tiny model on the CPU and has its effect."""

import math

import pytest

from grace_exp.config.compose import conf_dir

PRESETS = sorted(path.stem for path in (conf_dir() / "objective").glob("*.yaml"))
STEPS = ["job.steps=2", "objective.mini_batch_size=2"]
OWN_SCALE = {"grpo": "none", "grpo_std": "group_std", "dapo": "group_std", "gspo": "group_std", "exact": "none"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(train, preset: str) -> None:
    run = train(*STEPS, f"objective={preset}", f"objective.advantage_scale={OWN_SCALE.get(preset, 'batch_std')}")
    for name in ("train/loss", "train/surrogate", "train/ratio", "train/approx_kl", "mismatch/ratio_mean"):
        assert all(math.isfinite(value) for value in run.figure(name)), name
    assert all(value > 0 for value in run.figure("train/grad_norm"))
    pathwise = preset in ("exact", "grpo_pathwise")
    assert ("train/pathwise" in run.metrics) == ("train/pathwise_norm" in run.metrics) == pathwise
    # The transformers engine computes what the trainer does.
    assert run.figure("mismatch/ratio_max") == pytest.approx([1, 1], abs=1e-3)
    assert run.figure("mismatch/nonfinite") == [0, 0]
    assert run.figure("train/skipped_updates") == [0, 0]
    if preset == "copg":  # one stored instance for two fresh ones, in each of two updates
        assert run.figure("rollout/stored") == [0, 2]


def test_the_bonus_and_the_penalty_in_the_reward_are_computed_and_logged(train) -> None:
    run = train(
        *STEPS,
        "objective.entropy_coefficient=0.01",
        "objective.importance.mode=sequence",
        "objective.kl.coefficient=0.1",
        "objective.kl.placement=reward",
    )
    # Nearly uniform over the tiny model's 1024 tokens.
    assert all(math.log(1024) / 2 < value <= math.log(1024) for value in run.figure("train/entropy"))
    assert run.figure("train/importance") == pytest.approx([1, 1], abs=1e-3)
    first, second = run.figure("train/kl_reference")  # before the first update there is no distance
    assert first == pytest.approx(0, abs=1e-6) and abs(second) > 1e-6


@pytest.mark.parametrize("preset", ["grpo_std", "dr_grpo", "gspo", "rloo"])
def test_micro_batches_change_nothing_but_rounding(train, preset: str) -> None:
    """One micro-batch or many give the same weights, which show the gradient because AdamW's epsilon is large."""
    settings = [f"objective={preset}", "job.steps=1", "optim.epsilon=1", "optim.learning_rate=1"]
    whole, cut = (train(*settings, f"hardware.train_tokens={tokens}") for tokens in (100_000, 1))
    assert cut.figure("train/loss") == pytest.approx(whole.figure("train/loss"), abs=1e-5)
    for name, weight in whole.weights.items():
        assert (cut.weights[name] - weight).abs().max().item() < 1e-4, name
