"""Advantages: baselines, scales, and rationales that take no part."""

from dataclasses import replace
from itertools import combinations
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from grace_exp.config.objective import KlConfig, ObjectiveConfig, OverlongConfig
from grace_exp.objective import ALGORITHMS, AdvantageInputs, compute_advantages, shaped_rewards
from grace_exp.objective.advantage import STD_EPSILON
from grace_exp.objective.dapo import informative_groups, overlong_punishment

SCALES = ["none", "group_std", "batch_std"]
NAMES = sorted(ALGORITHMS.keys() - {"custom"})  # which has functions of the user's own
REWARDS = torch.tensor([[0.0, 2.0], [10.0, 16.0]])
RANDOM = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def inputs(rewards: Tensor, kept: Tensor | None = None, **more: Any) -> AdvantageInputs:
    given = {
        "rewards_GK": rewards,
        "kept_GK": torch.ones_like(rewards, dtype=torch.bool) if kept is None else kept,
        "lengths_GK": torch.ones_like(rewards, dtype=torch.long),
        "max_tokens": 10,
        "baseline_G": torch.zeros(len(rewards), dtype=rewards.dtype),
    }
    return AdvantageInputs(**given | more)


def config(algorithm: str = "grpo", **settings: Any) -> ObjectiveConfig:
    if algorithm == "copg":
        settings["kl"] = KlConfig(estimator="k1", placement="reward")
    return ObjectiveConfig(algorithm=algorithm, **settings)


def advantages(rewards: Tensor, algorithm: str = "grpo", scale: str = "none", **more: Any) -> Tensor:
    return compute_advantages(inputs(rewards, **more), config(algorithm, advantage_scale=scale))


def test_registry_has_the_names_of_the_schema() -> None:
    """A config's algorithm finds its functions."""
    assert set(ALGORITHMS) == set(get_args(get_type_hints(ObjectiveConfig)["algorithm"]))


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [[-1.0, 1.0], [-3.0, 3.0]]),
        (
            "group_std",
            [[-1 / (1 + STD_EPSILON), 1 / (1 + STD_EPSILON)], [-3 / (3 + STD_EPSILON), 3 / (3 + STD_EPSILON)]],
        ),
        # Centred values -1, 1, -3, 3: root mean square sqrt 5.
        ("batch_std", [[x / (5**0.5 + STD_EPSILON) for x in row] for row in ([-1, 1], [-3, 3])]),
    ],
)
def test_known_rewards(scale: str, expected: list[list[float]]) -> None:
    """Closed form."""
    torch.testing.assert_close(advantages(REWARDS, scale=scale), torch.tensor(expected))


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("dr_grpo", [[-1.0, 1.0], [-3.0, 3.0]]),
        ("dapo", [[-1.0, 1.0], [-3.0, 3.0]]),
        ("gspo", [[-1.0, 1.0], [-3.0, 3.0]]),
        ("reinforce_pp_baseline", [[-1.0, 1.0], [-3.0, 3.0]]),
        ("rloo", [[-2.0, 2.0], [-6.0, 6.0]]),
        ("copg", [[-2.0, 2.0], [-6.0, 6.0]]),
        ("reinforce_pp", [[-7.0, -5.0], [3.0, 9.0]]),
        ("remax", [[-1.0, 1.0], [10.0, 16.0]]),
    ],
)
def test_known_baselines(algorithm: str, expected: list[list[float]]) -> None:
    """Group mean, mean of the others, batch mean 7, greedy rewards 1 and 0."""
    found = advantages(REWARDS, algorithm, baseline_G=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_papers_advantages_are_centred_to_the_last_bit() -> None:
    """GRACE's rule, written out: final minus the group's mean."""
    rewards = RANDOM.float()
    offsets = rewards - rewards[:, :1]
    assert torch.equal(advantages(rewards), offsets - offsets.mean(dim=1, keepdim=True))


def test_rloo_is_the_reward_less_the_mean_of_the_others() -> None:
    """Taken literally."""
    expected = [[row[i] - (row.sum() - row[i]) / 7 for i in range(8)] for row in RANDOM]
    torch.testing.assert_close(advantages(RANDOM, "rloo"), torch.tensor(expected, dtype=torch.float64))


def test_reinforce_pp_is_the_standard_score_over_the_batch() -> None:
    """Both variants have mean 0 and deviation 1 over the batch; the baseline one also mean 0 in each group."""
    plain, grouped = (advantages(RANDOM, name, "batch_std") for name in ("reinforce_pp", "reinforce_pp_baseline"))
    score = (RANDOM - RANDOM.mean()) / RANDOM.std(correction=0)
    torch.testing.assert_close(plain, score, rtol=1e-3, atol=1e-9)
    assert plain.std(correction=0).item() == pytest.approx(1, rel=1e-3)
    assert grouped.std(correction=0).item() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(grouped.mean(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("samples", [1, 3, 7])
@pytest.mark.parametrize("algorithm", NAMES)
def test_equal_rewards_give_exactly_zero(algorithm: str, scale: str, samples: int) -> None:
    """0.1 x 3 / 3 is not 0.1 in float32, yet nothing may train; nor may a deviation of zero make nan."""
    each = torch.full((3,), 0.1) if algorithm == "reinforce_pp" else torch.tensor([0.1, -7.3, 1e4])
    found = advantages(each[:, None].expand(3, samples), algorithm, scale, baseline_G=each)
    assert torch.equal(found, torch.zeros(3, samples))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("algorithm", NAMES)
def test_rationales_that_are_not_kept_change_nothing(algorithm: str, scale: str) -> None:
    """Whatever their reward: theirs is 0, the others' are those of a group without them."""
    kept = torch.ones(5, 8, dtype=torch.bool)
    kept[:, [0, 3, 6]] = False
    baseline = RANDOM[:, 0]
    expected = advantages(RANDOM[:, [1, 2, 4, 5, 7]], algorithm, scale, baseline_G=baseline)
    for junk in (1e9, float("nan"), float("-inf")):
        found = advantages(RANDOM.masked_fill(~kept, junk), algorithm, scale, kept_GK=kept, baseline_G=baseline)
        assert (found[~kept] == 0).all()
        torch.testing.assert_close(found[kept].view(5, 5), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_group_of_which_nothing_is_kept_has_no_advantages(algorithm: str) -> None:
    """And no nan."""
    kept = torch.tensor([[False, False], [True, True]])
    for scale in SCALES:
        found = advantages(REWARDS, algorithm, scale, kept_GK=kept)
        assert found.isfinite().all() and (found[0] == 0).all()


@pytest.mark.parametrize("algorithm", sorted(set(NAMES) - {"reinforce_pp", "remax"}))
@pytest.mark.parametrize("scale", SCALES)
def test_every_group_has_mean_zero_and_ignores_its_offset(algorithm: str, scale: str) -> None:
    """An easy text gets no more than a hard one."""
    found = advantages(RANDOM, algorithm, scale)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    shifted = RANDOM + torch.arange(5)[:, None] * 10.0
    torch.testing.assert_close(advantages(shifted, algorithm, scale), found, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_scaled_advantages_ignore_the_unit_of_rewards(scale: str) -> None:
    """Temperature then only moves the rewards against the truncation value."""
    torch.testing.assert_close(advantages(10 * RANDOM, scale=scale), advantages(RANDOM, scale=scale), atol=0, rtol=1e-3)


def test_rounding_noise_is_not_scaled_up() -> None:
    """Rewards that differ in float32's last digit stay near zero."""
    rewards = torch.tensor([[10.0, 10.0 + 1e-6, 10.0, 10.0]])
    assert advantages(rewards, scale="group_std").abs().max() < 0.02


def test_batch_std_keeps_the_groups_relative_weight() -> None:
    """A group that spreads three times as wide weighs three times as much; group_std levels them."""
    spread = {scale: advantages(REWARDS, scale=scale)[:, 1] for scale in SCALES}
    assert (spread["batch_std"][1] / spread["batch_std"][0]).item() == pytest.approx(3.0)
    assert (spread["group_std"][1] / spread["group_std"][0]).item() == pytest.approx(1.0, abs=1e-3)


def test_long_rationales_are_punished_as_in_dapo() -> None:
    """Equation 13 of arXiv 2503.14476 with its figures: 20480 tokens, of which the last 4096 cost."""
    lengths = torch.tensor([[1, 16384, 18432, 20480]])
    found = overlong_punishment(lengths, 20480, OverlongConfig(share=0.2, penalty=2.0))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, -1.0, -2.0]], dtype=torch.float64))


def test_punishment_and_penalty_enter_the_reward_before_the_advantage() -> None:
    """Reward - punishment of length - coefficient x KL."""
    settings = config(overlong=OverlongConfig(share=0.5), kl=KlConfig(coefficient=0.1, placement="reward"))
    given = inputs(
        REWARDS, lengths_GK=torch.tensor([[5, 10], [5, 5]]), reference_kl_GK=torch.tensor([[0.0, 0.0], [20.0, 0]])
    )
    shaped = shaped_rewards(given, settings)
    torch.testing.assert_close(shaped, torch.tensor([[0.0, 1.0], [8.0, 16.0]]))
    torch.testing.assert_close(compute_advantages(given, settings), torch.tensor([[-0.5, 0.5], [-4.0, 4.0]]))


def test_copg_leaves_the_penalty_to_the_update() -> None:
    """There it is that of the policy being updated."""
    kl = KlConfig(coefficient=0.1, estimator="k1", placement="reward")
    settings = ObjectiveConfig(algorithm="copg", kl=kl)
    assert torch.equal(shaped_rewards(inputs(REWARDS), settings), REWARDS)


def test_groups_without_spread_are_found() -> None:
    """Among what is kept only."""
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 2.0, 1.0], [5.0, 6.0, 7.0]])
    kept = torch.tensor([[True] * 3, [True] * 3, [True, False, True], [False] * 3])
    assert informative_groups(rewards, kept).tolist() == [False, True, False, False]


def test_what_an_algorithm_needs_is_asked_for() -> None:
    """Never replaced by a zero."""
    with pytest.raises(ValueError, match="remax needs the greedy"):
        advantages(REWARDS, "remax", baseline_G=None)
    with pytest.raises(ValueError, match=r"kl\.placement=reward needs reference_kl"):
        compute_advantages(inputs(REWARDS), config(kl=KlConfig(coefficient=0.1, placement="reward")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kept_GK", torch.ones(2, 1, dtype=torch.bool)),
        ("kept_GK", torch.ones(2, 2)),
        ("lengths_GK", torch.ones(2)),
        ("baseline_G", torch.zeros(2, 1)),
        ("reference_kl_GK", torch.zeros(2)),
    ],
)
def test_inputs_that_would_broadcast_are_errors(field: str, value: Tensor) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=field):
        replace(inputs(REWARDS), **{field: value})


def pairwise_copg(rewards: Tensor, log_ratios: Tensor, beta: float) -> Tensor:
    """The source's loss of a pair, averaged over the pairs of the group."""
    pairs = [
        -(rewards[i] - rewards[j] - beta / 2 * (log_ratios[i] - log_ratios[j])) * (log_ratios[i] - log_ratios[j])
        for i, j in combinations(range(len(rewards)), 2)
    ]
    return torch.stack(pairs).sum() / (len(rewards) - 1)


def test_copgs_refreshed_advantages_are_the_gradient_of_its_pairwise_loss() -> None:
    """Minus the derivative by each rationale's log-probability."""
    log_ratios = torch.linspace(-2, 3, 8, dtype=torch.float64).sin().requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise_copg(RANDOM[0], log_ratios, 0.7), log_ratios)
    settings = ObjectiveConfig(algorithm="copg", kl=KlConfig(coefficient=0.7, estimator="k1", placement="reward"))
    refresh = ALGORITHMS["copg"].refresh
    assert refresh is not None
    found = refresh(RANDOM[:1], log_ratios[None], torch.ones(1, 8, dtype=torch.bool), settings)
    assert not found.requires_grad
    torch.testing.assert_close(found[0], -gradient)


def test_copg_finds_the_regularised_optimum_from_rationales_of_another_policy() -> None:
    """pi = reference x exp(reward / beta) / Z, although the samples are uniform; REINFORCE on them does not."""
    beta, rewards = 0.5, torch.tensor([1.0, 0.2, -0.5, 0.4], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    best = (reference * (rewards / beta).exp()) / (reference * (rewards / beta).exp()).sum()
    settings = ObjectiveConfig(algorithm="copg", kl=KlConfig(coefficient=beta, estimator="k1", placement="reward"))
    refresh = ALGORITHMS["copg"].refresh
    assert refresh is not None
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        logprobs = logits.log_softmax(0)
        # One group that holds every answer once: a batch drawn from the uniform policy, without its noise.
        log_ratios = (logprobs - reference.log()).detach()
        advantage = refresh(rewards[None], log_ratios[None], torch.ones(1, 4, dtype=torch.bool), settings)[0]
        (gradient,) = torch.autograd.grad(-(advantage * logprobs).mean(), logits)
        logits = (logits - 0.5 * gradient).detach().requires_grad_()
    torch.testing.assert_close(logits.softmax(0), best, atol=1e-6, rtol=0)
