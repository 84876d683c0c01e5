"""Weights, temperature, truncation, and figures to log."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from grace_exp.config.reward import (
    HardNegativeConfig,
    NegativeConfig,
    RewardConfig,
    TermConfig,
    TermsConfig,
    TruncationConfig,
)
from grace_exp.reward import Reward, RewardInputs, compose_reward, required_inputs

Make = Callable[..., RewardInputs]

PAPER = RewardConfig(
    name="paper_supervised",
    terms=TermsConfig(
        positive=TermConfig(),
        negative=NegativeConfig(),
        consistency=TermConfig(weight=0.2),
        hard_negative=HardNegativeConfig(weight=0.2),
    ),
)


def test_total_is_weighted_sum_divided_by_temperature(make_inputs: Make) -> None:
    """And terms stay unweighted."""
    reward = compose_reward(make_inputs(), PAPER)
    terms = reward.terms
    expected = (terms["positive"] + terms["negative"] + 0.2 * terms["consistency"] + 0.2 * terms["hard_negative"]) / 0.1
    torch.testing.assert_close(reward.total_GK, expected, atol=1e-5, rtol=0)
    assert terms["positive"].abs().max() <= 1
    assert {values.dtype for values in (*terms.values(), reward.total_GK, reward.final_GK)} == {torch.float32}


def test_terms_of_weight_zero_are_reported_and_add_nothing(make_inputs: Make) -> None:
    """So that a run can watch a term it does not train on."""
    alone = compose_reward(make_inputs(), replace(PAPER, terms=TermsConfig(positive=TermConfig())))
    watched = TermsConfig(positive=TermConfig(), consistency=TermConfig(weight=0.0))
    reward = compose_reward(make_inputs(), replace(PAPER, terms=watched))
    assert torch.equal(reward.total_GK, alone.total_GK)
    assert reward.terms["consistency"].abs().min() > 0
    assert reward.metrics()["reward/consistency/mean"] == pytest.approx(reward.terms["consistency"].mean().item())


def test_truncated_rationales_get_the_absolute_value(make_inputs: Make) -> None:
    """And only they; the total before it stays visible."""
    inputs = make_inputs(seed=3)
    reward = compose_reward(inputs, replace(PAPER, truncation=TruncationConfig(value=-2.5)))
    assert 0 < inputs.truncated_GK.sum() < inputs.truncated_GK.numel()
    assert (reward.final_GK[inputs.truncated_GK] == -2.5).all()
    assert torch.equal(reward.final_GK[~inputs.truncated_GK], reward.total_GK[~inputs.truncated_GK])
    assert (reward.total_GK[inputs.truncated_GK] != -2.5).all()


def test_metrics_of_a_known_reward() -> None:
    """Orthogonal plane: cosines 1, 0 and 0.6, 0.8; weight 2 and temperature 0.5 make a scale of 4."""
    inputs = RewardInputs(
        rollouts_GKH=torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [4.0, 3.0]]]),
        anchors_GAH=torch.tensor([[[1.0, 0.0]], [[5.0, 0.0]]]),
        negatives_GMH=None,
        truncated_GK=torch.tensor([[False, True], [False, False]]),
        lengths_GK=torch.ones(2, 2),
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
    expected |= {"reward/positive/advantage_share": 1.0, "reward/zero_spread_share": 0.0}
    assert compose_reward(inputs, config).metrics() == pytest.approx(expected, abs=1e-6)


def test_within_group_std_shows_which_terms_train(make_inputs: Make) -> None:
    """Exactly zero for the inert ones, not merely small."""
    reward = compose_reward(make_inputs(6, 5, 2), PAPER)
    metrics = reward.metrics()
    for figure in ("within_group_std", "advantage_share"):
        inert = {name for name in reward.terms if metrics[f"reward/{name}/{figure}"] == 0.0}
        assert inert == {"negative", "hard_negative"}


def test_advantage_shares_are_covariances_with_the_total_over_its_variance() -> None:
    """Two groups, two terms, masked values far off; centred on kept values: 1 -1 | -1 0 1, and 2 -2 | 0 1 -1."""
    first = torch.tensor([[1.0, -1.0, 50.0], [4.0, 5.0, 6.0]])
    second = torch.tensor([[2.0, -2.0, 9.0], [7.0, 8.0, 6.0]])
    kept = torch.tensor([[True, True, False], [True, True, True]])
    total = 2 * first + second
    reward = Reward({"first": first, "second": second}, {"first": 2.0, "second": 1.0}, total, total, kept)
    # parts: 2 -2 | -2 0 2 and 2 -2 | 0 1 -1; total: 4 -4 | -2 1 1, of variance 38
    metrics = reward.metrics()
    assert metrics["reward/first/advantage_share"] == pytest.approx((8 + 8 + 4 + 0 + 2) / 38)
    assert metrics["reward/second/advantage_share"] == pytest.approx((8 + 8 + 0 + 1 - 1) / 38)


def test_advantage_shares_add_up_to_one(make_inputs: Make) -> None:
    """Negative ones included, which work against the rest; of a term with weight 0 it is 0."""
    terms = TermsConfig(
        positive=TermConfig(),
        consistency=TermConfig(weight=-0.5),
        hard_negative=HardNegativeConfig(anchor="rollout"),
        format=TermConfig(weight=0.0),
    )
    metrics = compose_reward(make_inputs(6, 5, 2), replace(PAPER, terms=terms)).metrics()
    shares = {name: metrics[f"reward/{name}/advantage_share"] for name in ("positive", "consistency", "hard_negative")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(map(abs, shares.values())) > 0.001
    assert metrics["reward/format/advantage_share"] == 0.0 < metrics["reward/format/mean"] + 1


def test_a_step_without_spread_has_no_shares() -> None:
    """Equal rewards within groups, however different between them; one kept rationale has no spread either."""
    values = torch.tensor([[0.3, 0.3, 0.3], [0.7, 0.7, 0.1], [0.2, 0.9, 0.9]])
    kept = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    metrics = Reward({"only": values}, {"only": 10.0}, values, values, kept).metrics()
    assert metrics["reward/only/advantage_share"] == 0.0
    assert metrics["reward/zero_spread_share"] == 1.0
    assert Reward({"only": values}, {"only": 1.0}, values, values, kept | True).metrics()[
        "reward/zero_spread_share"
    ] == pytest.approx(1 / 3)


def test_required_inputs_are_those_of_the_set_terms_weight_zero_included() -> None:
    terms = TermsConfig(positive=TermConfig(), format=TermConfig(weight=0.0), faithfulness=TermConfig())
    assert required_inputs(replace(PAPER, terms=terms)) == {"well_formed", "swapped", "bare"}
    assert required_inputs(PAPER) == set()
