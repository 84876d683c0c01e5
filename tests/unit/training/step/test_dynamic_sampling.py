"""Instances whose groups have equal rewards are replaced by others."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from grace_exp.data.batch import Instance, Role
from grace_exp.training.step.dynamic_sampling import Resampler
from grace_exp.training.step.rollouts import InstanceRollouts, Rollouts


def instance(index: int) -> Instance:
    return Instance(index=index, query=f"q{index}", positive=f"p{index}", negatives=(), source="s")


def rollouts(*indices: int, stored: Collection[int] = ()) -> Rollouts:
    written = [InstanceRollouts(instance(index), {}, {}, [] if index in stored else None) for index in indices]
    return Rollouts(written, (Role.POSITIVE,), 2)


def side(*rewards: list[float], kept: list[list[bool]] | None = None) -> Any:
    shaped = torch.tensor(rewards)
    mask = torch.tensor(kept) if kept else torch.ones_like(shaped, dtype=torch.bool)
    return SimpleNamespace(shaped_GK=shaped, reward=SimpleNamespace(kept_GK=mask))


class Source:
    """The first free instance from 100 on; keeps what it was asked."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.asked: list[tuple[int, int]] = []

    def another(self, index: int, seed: int, without: Collection[int]) -> Instance | None:
        self.asked.append((index, seed))
        free = (number for number in range(100, 100 + self.size) if number not in without)
        return next((instance(number) for number in free), None)


def start(source: Source, step: int = 3) -> Resampler:
    return Resampler(0, step, lambda tensor: tensor, source.another)


def test_instances_without_spread_go_and_the_others_stay() -> None:
    source = Source()
    resampler = start(source)
    before = rollouts(4, 9, 2)
    found = resampler.next(before, [side([1, 2], [5, 5], [0, 0])])
    assert {old: new.index for old, new in found.items()} == {2: 100, 9: 101}
    new = rollouts(101, 100)
    after = resampler.made(before, new)
    assert [one.instance.index for one in after.instances] == [4, 101, 100]
    assert resampler.next(after, [side([1, 2], [1, 3], [0, 1])]) == {}
    assert resampler.metrics(after, [side([1, 2], [1, 3], [0, 1])]) == {
        "rollout/extra_rounds": 1,
        "rollout/zero_spread_dropped": 2,
        "rollout/zero_spread_left": 0,
    }


def test_one_side_with_spread_keeps_an_instance_and_what_is_left_out_is_no_spread() -> None:
    trained_roles = [side([1, 1], [2, 2]), side([3, 4], [1, 7], kept=[[True, True], [True, False]])]
    assert list(start(Source()).next(rollouts(4, 9), trained_roles)) == [9]


def test_stored_instances_stay() -> None:
    assert list(start(Source()).next(rollouts(4, 9, stored={9}), [side([1, 1], [2, 2])])) == [4]


def test_no_instance_comes_twice_and_a_source_may_run_out() -> None:
    source = Source(size=3)
    resampler = start(source)
    flat = side([1, 1], [2, 2])
    first = resampler.next(rollouts(100, 4), [flat])
    assert [new.index for new in first.values()] == [101, 102]
    second = resampler.next(resampler.made(rollouts(100, 4), rollouts(101, 102)), [flat])
    assert second == {}
    assert resampler.metrics(rollouts(101, 102), [flat])["rollout/zero_spread_left"] == 2


def test_what_comes_depends_on_step_round_and_what_goes_not_on_the_order_of_processes() -> None:
    flat = side([1, 1], [2, 2])
    one, two, other = Source(), Source(), Source()
    found = start(one).next(rollouts(4, 9), [flat])
    assert start(two).next(rollouts(9, 4), [flat]) == found and one.asked == two.asked
    start(other, step=4).next(rollouts(4, 9), [flat])
    assert {seed for _, seed in one.asked}.isdisjoint(seed for _, seed in other.asked)


def test_all_processes_know_all_exchanges() -> None:
    def gather(tensor: Tensor) -> Tensor:  # the other process has instances 7 and 8, as informative as ours
        return torch.cat([tensor, tensor + 3]) if tensor.dtype != torch.bool else tensor.repeat(2)

    flat = side([1, 1], [1, 2], [2, 2], [3, 4])
    resampler = Resampler(0, 0, gather, Source().another)
    assert list(resampler.next(rollouts(4, 5), [flat])) == [4, 7]
