"""The reward of truncated rationales."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grace_exp.config.reward import (
    HardNegativeConfig,
    NegativeConfig,
    RewardConfig,
    TermConfig,
    TermsConfig,
    TruncationConfig,
)
from grace_exp.reward import Reward, RewardInputs, compose_reward
from grace_exp.reward.truncation import apply_truncation

CASES = json.loads((Path(__file__).parents[2] / "golden" / "reward_released_code.json").read_text())["cases"]
(GOLDEN,) = [case for case in CASES if case["mode"] == "supervised" and any(case["truncated"])]
MODES = ("absolute", "group_relative", "mask", "none")


def _paper(consistency: float, hard_negative: float, mode: str) -> tuple[Reward, Tensor]:
    """The paper's reward of the golden file's one supervised case with truncated rationales, and which those are."""
    shape = GOLDEN["B"], GOLDEN["K"]
    inputs = RewardInputs(
        rollouts_GKH=torch.tensor(GOLDEN["rollouts"]),
        anchors_GAH=torch.tensor(GOLDEN["query"])[:, None],
        negatives_GMH=torch.tensor(GOLDEN["negative"])[:, None],
        truncated_GK=torch.tensor(GOLDEN["truncated"], dtype=torch.bool).view(shape),
        lengths_GK=torch.ones(shape),
    )
    terms = TermsConfig(
        positive=TermConfig(),
        negative=NegativeConfig(),
        consistency=TermConfig(weight=consistency),
        hard_negative=HardNegativeConfig(weight=hard_negative),
    )
    config = RewardConfig(name="paper", terms=terms, truncation=TruncationConfig(mode=mode))  # type: ignore[arg-type]
    return compose_reward(inputs, config), inputs.truncated_GK


def _advantages(final: Tensor, kept: Tensor) -> Tensor:
    mean = (final * kept).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp_min(1)
    return (final - mean) * kept


def test_the_paper_s_penalty_rewards_truncation_at_weights_of_its_own_grid() -> None:
    """METHOD 6.2: at (w_c, w_h) = (0.2, 0.2) it punishes, at (0, 1) it rewards, on the vectors of the released code."""
    advantages = {}
    for weights in ((0.2, 0.2), (0.0, 1.0)):
        reward, truncated = _paper(*weights, "absolute")
        advantages[weights] = _advantages(reward.final_GK, reward.kept_GK)[truncated]
        assert (reward.final_GK[truncated] == -1).all()
    assert len(advantages[0.2, 0.2]) >= 3 and (advantages[0.2, 0.2] < -0.5).all()
    assert (advantages[0.0, 1.0] > 1.5).all()


def test_a_collapsed_space_rewards_truncation_most() -> None:
    """All cosines 1 at (0, 1) make totals (1 - 1 - 1) / 0.1 = -10: one of K = 8 gains (1 - 1/8) x 9 = 7.875."""
    totals = torch.full((1, 8), -10.0)
    truncated = torch.arange(8)[None] == 2
    final, kept = apply_truncation(totals, truncated, TruncationConfig())
    assert _advantages(final, kept)[truncated].item() == pytest.approx(7.875)


@pytest.mark.parametrize("mode", ["group_relative", "mask"])
def test_the_other_modes_never_reward_truncation(mode: str) -> None:
    """At the same weights, on the same vectors."""
    for weights in ((0.2, 0.2), (0.0, 1.0)):
        reward, truncated = _paper(*weights, mode)
        advantages = _advantages(reward.final_GK, reward.kept_GK)
        assert (advantages[truncated] <= 0).all()
        assert (reward.kept_GK == ~truncated).all() == (mode == "mask")


@st.composite
def _steps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    groups, samples = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.floats(-1e3, 1e3, width=32)
    size = groups * samples
    totals = draw(st.lists(numbers, min_size=size, max_size=size))
    truncated = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(totals).double().view(groups, samples), torch.tensor(truncated).view(groups, samples)


@settings(max_examples=60, deadline=None)
@given(_steps(), st.sampled_from(["group_relative", "mask"]), st.floats(0.01, 100))
def test_no_truncated_rationale_gains_whatever_the_totals(
    step: tuple[Tensor, Tensor], mode: str, margin: float
) -> None:
    """And those of a group in which all are truncated are worth the same."""
    totals, truncated = step
    final, kept = apply_truncation(totals, truncated, TruncationConfig(mode=mode, margin=margin))  # type: ignore[arg-type]
    advantages = _advantages(final, kept)
    assert (advantages[truncated] <= 1e-9).all()
    assert (advantages[truncated.all(dim=1)].abs() <= 1e-9).all()
    assert torch.equal(final[~truncated], totals[~truncated])
    mixed = truncated & ~truncated.all(dim=1, keepdim=True)
    assert (advantages[mixed] < 0).all() or mode == "mask"


def test_group_relative_is_a_margin_below_the_worst_complete_rationale() -> None:
    """Whatever the truncated one's own total; without a complete one, below the worst of all."""
    totals = torch.tensor([[3.0, -2.0, -9.0], [1.0, 4.0, 2.0], [5.0, 6.0, 7.0]])
    truncated = torch.tensor([[False, False, True], [True, True, True], [False, False, False]])
    final, kept = apply_truncation(totals, truncated, TruncationConfig(mode="group_relative", margin=0.5))
    assert final.tolist() == [[3.0, -2.0, -2.5], [0.5, 0.5, 0.5], [5.0, 6.0, 7.0]]
    assert kept.all()


def test_truncation_none_scores_truncated_rationales_as_others() -> None:
    reward, _ = _paper(0.2, 0.2, "none")
    assert torch.equal(reward.final_GK, reward.total_GK) and reward.kept_GK.all()


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_touches_a_step_in_which_all_rationales_end(mode: str) -> None:
    totals = torch.tensor([[3.0, -2.0], [1.0, 4.0]])
    final, kept = apply_truncation(totals, torch.zeros(2, 2, dtype=torch.bool), TruncationConfig(mode=mode))  # type: ignore[arg-type]
    assert torch.equal(final, totals) and kept.all()
