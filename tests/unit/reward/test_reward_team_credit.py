"""Team credit: closed forms, the rewards with each rationale in another's place, and an enumerated policy gradient."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grace_exp.config.compose import compose_config
from grace_exp.config.reward import RewardConfig
from grace_exp.reward import RewardInputs, compose_reward, team_credit

MakeInputs = Callable[..., RewardInputs]
REWARDS = {
    "anchor_to_rollouts": [
        "reward=infonce",
        "reward.terms.infonce.direction=anchor_to_rollouts",
        "reward.terms.infonce.temperature=0.5",
    ],
    "both": ["reward=infonce_both", "reward.terms.infonce.negatives=all", "reward.terms.infonce.temperature=0.5"],
}
ONLY_HARD_NEGATIVES = [
    "reward=paper_supervised",
    "reward.terms.hard_negative.weight=1",
    *(f"reward.terms.{term}=null" for term in ("positive", "negative", "consistency")),
]


def config_of(tmp_path: Path, *overrides: str) -> RewardConfig:
    # A temperature at which rewards are of order 1.
    gentle = ["reward.temperature=1", "reward.truncation.mode=none"]
    return compose_config(["+experiment=demo_tiny", *overrides, *gentle], tmp_path).reward


def near(inputs: RewardInputs, spread: float) -> RewardInputs:
    """The same with groups of rationales that are close to their middle."""
    middle = inputs.unit_rollouts_GKH.mean(dim=1, keepdim=True)
    return replace(inputs, rollouts_GKH=(middle + spread * (inputs.unit_rollouts_GKH - middle)).float())


def others_rewards(inputs: RewardInputs, config: RewardConfig, group: int) -> float:
    final = compose_reward(inputs, config).final_GK.double().sum(dim=1)
    return (final.sum() - final[group]).item()


def replaced(inputs: RewardInputs, config: RewardConfig) -> Tensor:
    """Of each rationale, the others' rewards less their mean with each sibling in its place, `[groups, K]`."""
    groups, samples = inputs.truncated_GK.shape
    found = torch.zeros(groups, samples)
    for group, k in product(range(groups), range(samples)):
        values = []
        for sibling in range(samples):
            rollouts = inputs.rollouts_GKH.clone()
            rollouts[group, k] = inputs.rollouts_GKH[group, sibling]
            values.append(others_rewards(replace(inputs, rollouts_GKH=rollouts), config, group))
        found[group, k] = values[k] - sum(values) / samples
    return found


@pytest.mark.parametrize("name", REWARDS)
def test_it_is_what_a_sibling_in_its_place_would_change_to_first_order(
    make_inputs: MakeInputs, tmp_path: Path, name: str
) -> None:
    """At half the spread the error is a quarter."""
    config = config_of(tmp_path, *REWARDS[name])
    errors = []
    for spread in (0.1, 0.05):
        inputs = near(make_inputs(4, 3, 2, seed=3), spread)
        found, expected = team_credit(inputs, config).rollouts_GK, replaced(inputs, config)
        errors.append((found - expected).norm().item() / spread)
        assert expected.norm() > 5 * errors[-1] * spread
    assert errors[1] < 0.6 * errors[0]


def test_hard_negatives_of_the_paper_have_the_credit_of_the_nearest_rationale(
    make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """-K / (G - 1) x slope of the cosine along the way from the mean, for every query whose nearest it is."""
    config = config_of(tmp_path, *ONLY_HARD_NEGATIVES)
    inputs = make_inputs(4, 3, 1)
    assert compose_reward(inputs, config).final_GK.std(dim=1).max() < 1e-6  # no advantage of its own
    unit, queries = inputs.unit_rollouts_GKH, inputs.unit_anchors_GAH[:, 0]
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for group, query in product(range(4), range(4)):
        if group == query:
            continue
        cosines = unit[group] @ queries[query]
        k = int(cosines.argmax())
        slope = (queries[query] - cosines[k] * unit[group, k]) @ (unit[group, k] - unit[group].mean(dim=0))
        expected[group, k] -= 3 / 3 * slope
    torch.testing.assert_close(team_credit(inputs, config).rollouts_GK.double(), expected, atol=1e-6, rtol=0)


def test_terms_that_read_no_other_text_give_none(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Siblings are of the same text: `consistency` is left to the advantage."""
    overrides = ["reward=paper_no_negatives", "reward.terms.consistency.weight=1"]
    credit = team_credit(make_inputs(), config_of(tmp_path, *overrides))
    assert credit.rollouts_GK.abs().max() == 0 and credit.anchors_GA.abs().max() == 0  # one anchor is its own mean
    ranks = compose_config(["+experiment=demo_tiny", "reward=log_rank"], tmp_path).reward
    assert team_credit(make_inputs(), ranks).rollouts_GK.tolist() == [[0.0] * 3] * 4


def test_it_is_the_same_where_gradients_are_off(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """As in the table of the evolution, which is written beside the steps."""
    inputs, config = make_inputs(4, 3, 2, seed=3), config_of(tmp_path, *REWARDS["both"])
    expected = team_credit(inputs, config)
    with torch.no_grad():
        found = team_credit(inputs, config)
    assert torch.equal(found.rollouts_GK, expected.rollouts_GK) and bool(found.rollouts_GK.any())
    assert torch.equal(found.anchors_GA, expected.anchors_GA)


def test_what_is_not_kept_has_none_and_lengths_do_not_count(make_inputs: MakeInputs, tmp_path: Path) -> None:
    config = config_of(tmp_path, *REWARDS["both"])
    masked = replace(config, truncation=replace(config.truncation, mode="mask"))
    inputs = make_inputs()
    credit = team_credit(inputs, masked).rollouts_GK
    assert inputs.truncated_GK.any() and (credit[inputs.truncated_GK] == 0).all() and credit.abs().max() > 0
    longer = replace(inputs, rollouts_GKH=inputs.rollouts_GKH * 2.0 ** torch.arange(-6, 6).view(4, 3, 1))
    torch.testing.assert_close(team_credit(longer, masked).rollouts_GK, credit, atol=1e-6, rtol=0)


def test_anchors_get_theirs_from_the_rewards_of_all_groups(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Finite differences along the way from the mean of the group's anchor samples."""
    config = config_of(tmp_path, *REWARDS["both"])
    inputs = make_inputs(3, 2, 1, 2)
    credit, step = team_credit(inputs, config).anchors_GA, 1e-3
    unit = inputs.unit_anchors_GAH
    for group, a in product(range(3), range(2)):
        way = unit[group, a] - unit[group].mean(dim=0)
        values = []
        for sign in (1, -1):
            anchors = unit.clone()
            anchors[group, a] += sign * step * way
            values.append(compose_reward(replace(inputs, anchors_GAH=anchors), config).final_GK.double().sum().item())
        assert credit[group, a].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-3)


def test_reward_and_credit_have_the_policy_gradient_of_all_rewards(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Three possible rationales of each of two texts, two drawn: the gradient of the logits, enumerated.

    With the paper's hard negatives alone no reward differs within a group: without credit there is no gradient.
    """
    config = config_of(tmp_path, *ONLY_HARD_NEGATIVES)
    pool = near(make_inputs(2, 3, 1, seed=5), 0.02)
    logits = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.2]], dtype=torch.float64, requires_grad=True)
    draws = list(product(range(3), repeat=4))
    expected, found, alone = torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for draw in draws:
        drawn = torch.tensor(draw).view(2, 2)
        rollouts = pool.rollouts_GKH.gather(1, drawn[..., None].expand(-1, -1, pool.rollouts_GKH.shape[2]))
        inputs = replace(
            pool,
            rollouts_GKH=rollouts,
            truncated_GK=torch.zeros(2, 2, dtype=torch.bool),
            lengths_GK=torch.ones(2, 2),
            well_formed_GK=None,
            swapped_GKH=None,
            swapped_from_G=None,
        )
        logprobs = logits.log_softmax(dim=1).gather(1, drawn)
        probability = logprobs.sum().exp()
        final = compose_reward(inputs, config).final_GK.double()
        (whole,) = torch.autograd.grad(probability * final.sum(), logits, retain_graph=True)
        expected += whole
        for sums, rewards in ((found, final + team_credit(inputs, config).rollouts_GK), (alone, final)):
            advantages = 2 * (rewards - rewards.mean(dim=1, keepdim=True))  # leave one out
            (part,) = torch.autograd.grad((advantages * logprobs).sum(), logits, retain_graph=True)
            sums += probability.detach() * part
    assert alone.abs().max() < 1e-9
    assert expected.abs().max() > 1e-4
    assert (found - expected).norm() < 0.2 * expected.norm()
