import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from grace_exp.config.rollout import RolloutConfig, TailConfig
from grace_exp.training.step.tail import Tail

CPU = torch.device("cpu")


def written(lengths: Sequence[int], others: Sequence[int] = ()) -> SimpleNamespace:
    def rollouts(some: Sequence[int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(completion=SimpleNamespace(token_ids=(7,) * length)) for length in some]

    return SimpleNamespace(group=rollouts(lengths), others=lambda: rollouts(others))


def share(lengths: Sequence[int], others: Sequence[int] = ()) -> float:
    tail = Tail(RolloutConfig(max_tokens=100))
    return tail.observe(written(lengths, others), lambda own: own, CPU)["rollout/tail_share"]


def test_the_tail_is_what_is_decoded_after_nine_of_ten_have_ended() -> None:
    assert share([10] * 9, others=[40]) == 1 - 10 / 40
    assert share([10] * 8 + [25] * 2) == 0
    assert share([5]) == share([7] * 20) == 0
    assert share(range(1, 101)) == pytest.approx(1 - 90 / 100)


def test_processes_are_one_step() -> None:
    both = torch.bincount(torch.tensor([10] * 9 + [40]), minlength=101).float()
    tail = Tail(RolloutConfig(max_tokens=100))
    assert tail.observe(written([10] * 5), lambda _: both, CPU)["rollout/tail_share"] == 0.75


@pytest.mark.parametrize(("quantile", "margin"), [(0.9, 1.5), (0.5, 1.0), (0.75, 3.0)])
def test_the_budget_is_a_multiple_of_a_quantile_of_the_step_before(quantile: float, margin: float) -> None:
    tail = Tail(RolloutConfig(max_tokens=100, tail=TailConfig(quantile=quantile, margin=margin)))
    lengths = [3, 9, 4, 12, 30, 8, 8, 21, 17, 5]
    assert tail.observe(written(lengths), lambda own: own, CPU)["rollout/token_budget"] == 100
    at = torch.tensor(lengths).double().quantile(quantile, interpolation="higher").item()
    inverse = sorted(lengths)[math.ceil(quantile * len(lengths)) - 1]  # numpy's inverted_cdf
    assert tail.budget == min(100, math.ceil(margin * inverse)) and inverse <= at
    assert tail.observe(written([2] * 10), lambda own: own, CPU)["rollout/token_budget"] == math.ceil(margin * inverse)


def test_a_budget_that_cuts_too_many_grows_again_up_to_max_tokens() -> None:
    tail = Tail(RolloutConfig(max_tokens=100, tail=TailConfig(quantile=0.9, margin=1.5)))
    budgets = []
    for _ in range(9):
        tail.observe(written([min(80, tail.budget)] * 10 if budgets else [8] * 10), lambda own: own, CPU)
        budgets.append(tail.budget)
    assert budgets == [12, 18, 27, 41, 62, 93, 100, 100, 100]


def test_without_the_setting_there_is_no_budget() -> None:
    tail = Tail(RolloutConfig(max_tokens=100))
    assert "rollout/token_budget" not in tail.observe(written([5] * 10), lambda own: own, CPU)
    assert tail.budget == 100
