"""The gradient of rewards with respect to the embeddings: finite differences, and terms without a gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grace_exp.config.compose import compose_config, conf_dir
from grace_exp.config.reward import RewardConfig, TermsConfig, TruncationConfig
from grace_exp.reward import TERMS, RewardInputs, compose_reward, reward_gradients
from grace_exp.reward.gradient import EMBEDDED

MakeInputs = Callable[..., RewardInputs]
PRESETS = sorted(path.stem for path in (conf_dir() / "reward").glob("*.yaml"))
TRUNCATION = ["absolute", "group_relative", "mask", "none"]


def preset(name: str, tmp_path: Path, *overrides: str) -> RewardConfig:
    unsupervised = ["data=wordnet_unsup"] if name == "paper_unsupervised" else []
    return compose_config(["+experiment=demo_tiny", f"reward={name}", *unsupervised, *overrides], tmp_path).reward


def mean_weights(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    kept = compose_reward(inputs, config).kept_GK
    return kept / kept.sum()


def assert_matches_finite_differences(inputs: RewardInputs, config: RewardConfig) -> None:
    """Along a random direction in each field's embeddings."""
    weights = mean_weights(inputs, config)
    found = reward_gradients(inputs, config, weights)
    generator, step = torch.Generator().manual_seed(1), 2e-3
    for name in EMBEDDED:
        at = getattr(inputs, name)
        if at is None:
            assert name not in found.fields
            continue
        direction = torch.randn(at.shape, generator=generator)
        values = [
            (weights * compose_reward(replace(inputs, **{name: at + sign * step * direction}), config).final_GK).sum()
            for sign in (1, -1)
        ]
        expected = (values[0] - values[1]).item() / (2 * step)
        assert (found.fields[name] * direction).sum().item() == pytest.approx(expected, abs=2e-3, rel=1e-2), name


@pytest.mark.parametrize("name", PRESETS)
def test_the_gradient_of_a_preset_is_that_of_its_value(make_inputs: MakeInputs, tmp_path: Path, name: str) -> None:
    config = preset(name, tmp_path)
    inputs = make_inputs(negatives=2, masked=True)
    if name == "paper_unsupervised":
        inputs = replace(inputs, negatives_GMH=None, negative_mask_GM=None)
    assert_matches_finite_differences(inputs, config)
    found = reward_gradients(inputs, config, mean_weights(inputs, config))
    if name == "log_rank":  # a rank is a step function
        assert all(bool((values == 0).all()) for values in found.fields.values())
        return
    assert found.fields["rollouts_GKH"].abs().max() > 1e-3 and found.fields["anchors_GAH"].abs().max() > 1e-3


@pytest.mark.parametrize("trained", ["positive", "query"])
@pytest.mark.parametrize("mode", TRUNCATION)
def test_the_truncation_rule_is_part_of_the_reward(make_inputs: MakeInputs, tmp_path: Path, mode: str, trained) -> None:
    config = preset("rollout_negatives", tmp_path, f"reward.truncation.mode={mode}")
    inputs = make_inputs(anchors=2, trained=trained)
    assert_matches_finite_differences(inputs, config)
    assert inputs.truncated_GK.any()
    # Without `consistency`, in which a truncated rationale counts as a sibling.
    alone = preset("rollout_negatives", tmp_path, f"reward.truncation.mode={mode}", "reward.terms.consistency=null")
    rollouts = reward_gradients(inputs, alone, mean_weights(inputs, alone)).fields["rollouts_GKH"]
    silent = (rollouts == 0).all(dim=-1)
    if mode in ("absolute", "mask"):
        assert torch.equal(silent, inputs.truncated_GK)
    elif mode == "none":
        assert not silent.any()


def test_negatives_that_cancel_in_the_advantage_act_here(make_inputs: MakeInputs, tmp_path: Path) -> None:
    config = preset("paper_supervised", tmp_path, "reward.truncation.mode=none")
    inputs = make_inputs(negatives=3, masked=True)
    gradients = reward_gradients(inputs, config, mean_weights(inputs, config)).fields
    there = inputs.has_negative_GM
    assert there.any() and not there.all()
    assert (gradients["negatives_GMH"][there].abs().amax(dim=-1) > 1e-3).all()
    assert (gradients["negatives_GMH"][~there] == 0).all()


@pytest.mark.parametrize("direction", ["rollout_to_anchors", "anchor_to_rollouts", "both"])
def test_one_group_has_finite_gradients(make_inputs: MakeInputs, tmp_path: Path, direction: str) -> None:
    for name in ("infonce", "margin_rank", "softmax_negatives", "rollout_negatives"):
        own = [f"reward.terms.infonce.direction={direction}"] if name == "infonce" else []
        config = preset(name, tmp_path, "reward.truncation.mode=none", *own)
        for negatives in (None, 1):
            inputs = make_inputs(groups=1, samples=2, negatives=negatives)
            gradients = reward_gradients(inputs, config, torch.full((1, 2), 0.5)).fields
            assert all(bool(torch.isfinite(values).all()) for values in gradients.values())


def test_a_term_has_a_gradient_unless_it_reads_no_embedding_or_ranks(make_inputs: MakeInputs) -> None:
    schema = TermsConfig.__dataclass_fields__
    for name in TERMS.keys() - {"custom"}:
        kind: Any = next(one for one in schema[name].type.__args__ if one is not type(None))
        terms = TermsConfig(**{name: kind(weight=1.0)})
        config = RewardConfig(name="one", terms=terms, truncation=TruncationConfig(mode="none"))
        found = reward_gradients(make_inputs(), config, torch.full((4, 3), 1 / 12)).fields
        moves = any(bool(values.abs().max() > 1e-6) for values in found.values())
        assert moves == (name not in ("log_rank", "format", "length")), name


def test_rewards_alone_carry_no_gradient(make_inputs: MakeInputs, tmp_path: Path) -> None:
    inputs = make_inputs()
    inputs = replace(inputs, rollouts_GKH=inputs.rollouts_GKH.requires_grad_())
    assert not compose_reward(inputs, preset("infonce", tmp_path)).final_GK.requires_grad
