"""Weights, temperature, truncation, figures to log, and what negatives do to advantages."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from grace_exp.config.reward import (
    HardNegativeConfig,
    InfoNceConfig,
    RewardConfig,
    TermConfig,
    TermsConfig,
    TruncationConfig,
)
from grace_exp.reward import RewardInputs, compose_reward

Make = Callable[..., RewardInputs]

PAPER = RewardConfig(
    name="paper_supervised",
    terms=TermsConfig(
        positive=TermConfig(),
        negative=TermConfig(),
        consistency=TermConfig(weight=0.2),
        hard_negative=HardNegativeConfig(weight=0.2),
    ),
)
INFONCE = RewardConfig(name="infonce", temperature=1.0, terms=TermsConfig(infonce=InfoNceConfig()))
NO_TRUNCATION = TruncationConfig(mode="none")


def test_total_is_weighted_sum_divided_by_temperature(make_inputs: Make) -> None:
    """And terms stay unweighted."""
    reward = compose_reward(make_inputs(), PAPER)
    terms = reward.terms
    expected = (terms["positive"] + terms["negative"] + 0.2 * terms["consistency"] + 0.2 * terms["hard_negative"]) / 0.1
    torch.testing.assert_close(reward.total, expected, atol=1e-5, rtol=0)
    assert terms["positive"].abs().max() <= 1
    assert {values.dtype for values in (*terms.values(), reward.total, reward.final)} == {torch.float32}


def test_terms_of_weight_zero_are_reported_and_add_nothing(make_inputs: Make) -> None:
    """So that a run can watch a term it does not train on."""
    alone = compose_reward(make_inputs(), replace(PAPER, terms=TermsConfig(positive=TermConfig())))
    watched = TermsConfig(positive=TermConfig(), consistency=TermConfig(weight=0.0))
    reward = compose_reward(make_inputs(), replace(PAPER, terms=watched))
    assert torch.equal(reward.total, alone.total)
    assert reward.terms["consistency"].abs().min() > 0


def test_truncated_rationales_get_the_absolute_value(make_inputs: Make) -> None:
    """And only they; the total before it stays visible."""
    inputs = make_inputs(seed=3)
    reward = compose_reward(inputs, replace(PAPER, truncation=TruncationConfig(value=-2.5)))
    assert 0 < inputs.truncated.sum() < inputs.truncated.numel()
    assert (reward.final[inputs.truncated] == -2.5).all()
    assert torch.equal(reward.final[~inputs.truncated], reward.total[~inputs.truncated])
    assert (reward.total[inputs.truncated] != -2.5).all()


def test_truncation_none_scores_truncated_rationales_as_others(make_inputs: Make) -> None:
    """Mode none changes nothing."""
    reward = compose_reward(make_inputs(), replace(PAPER, truncation=NO_TRUNCATION))
    assert torch.equal(reward.final, reward.total)


def test_paper_negatives_move_rewards_but_no_advantage(make_inputs: Make) -> None:
    """METHOD 6.1: up to 11 in rewards, 1e-6 in advantages."""
    rewards, advantages = _effect_of_other_negatives(make_inputs, PAPER)
    assert rewards > 1
    assert advantages < 1e-5


def test_infonce_negatives_move_advantages(make_inputs: Make) -> None:
    """Its negatives are compared with the rollout."""
    _, advantages = _effect_of_other_negatives(make_inputs, INFONCE)
    assert advantages > 0.1


def test_metrics_of_a_known_reward() -> None:
    """Orthogonal plane: cosines 1, 0 and 0.6, 0.8; weight 2 and temperature 0.5 make a scale of 4."""
    inputs = RewardInputs(
        rollouts=torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [4.0, 3.0]]]),
        queries=torch.tensor([[1.0, 0.0], [5.0, 0.0]]),
        negatives=None,
        truncated=torch.tensor([[False, True], [False, False]]),
        lengths=torch.ones(2, 2),
    )
    config = RewardConfig(name="known", temperature=0.5, terms=TermsConfig(positive=TermConfig(weight=2.0)))
    expected = {
        # 4, 0 | 2.4, 3.2: mean 2.4, deviations 1.6, -2.4, 0, 0.8; halves of the groups' ranges 2 and 0.4
        "reward/positive/mean": 2.4,
        "reward/positive/std": ((1.6**2 + 2.4**2 + 0.8**2) / 4) ** 0.5,
        "reward/positive/within_group_std": 1.2,
        # 4, -1 | 2.4, 3.2
        "reward/final/mean": 2.15,
        "reward/final/std": ((1.85**2 + 3.15**2 + 0.25**2 + 1.05**2) / 4) ** 0.5,
        "reward/final/within_group_std": (2.5 + 0.4) / 2,
    }
    expected |= {key.replace("positive", "total"): value for key, value in expected.items() if "positive" in key}
    assert compose_reward(inputs, config).metrics() == pytest.approx(expected, abs=1e-6)


def test_within_group_std_shows_which_terms_train(make_inputs: Make) -> None:
    """Exactly zero for the inert ones, not merely small."""
    reward = compose_reward(make_inputs(6, 5, 2), PAPER)
    metrics = reward.metrics()
    inert = {name for name in reward.terms if metrics[f"reward/{name}/within_group_std"] == 0.0}
    assert inert == {"negative", "hard_negative"}


def _effect_of_other_negatives(make_inputs: Make, config: RewardConfig) -> tuple[float, float]:
    """Largest change of a reward, and of an advantage, when random vectors take the negatives' place."""
    inputs = make_inputs(8, 4, 1)
    config = replace(config, truncation=NO_TRUNCATION)
    other = replace(inputs, negatives=torch.randn(8, 1, 12, generator=torch.Generator().manual_seed(9)))
    before, after = compose_reward(inputs, config).final, compose_reward(other, config).final
    centred = [final - final.mean(dim=1, keepdim=True) for final in (before, after)]
    return (after - before).abs().max().item(), (centred[1] - centred[0]).abs().max().item()
