"""Which stored instances join a step, on any number of processes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import Instance, Role
from grace_exp.data.prompts import Prompt
from grace_exp.rollout.protocol import Completion
from grace_exp.training.step.rollouts import InstanceRollouts, Rollout, Rollouts
from grace_exp.training.step.stored_instances import StoredInstances


def written(index: int) -> InstanceRollouts:
    instance = Instance(index=index, query="q", positive="p", negatives=(), source="s")
    completion = Completion((index, 5), (-1.0, -1.0), "stop")
    return InstanceRollouts(
        instance, {Role.POSITIVE: [Rollout(instance, Role.POSITIVE, "p", Prompt((1,), 0), completion, 1.0)]}, {}
    )


def rollouts(*indices: int) -> Rollouts:
    return Rollouts([written(index) for index in indices], (Role.POSITIVE,), 1)


SCORES: Any = SimpleNamespace(
    rows=lambda group: [torch.tensor([-float(token) for token in one.completion.token_ids]) for one in group]
)


@pytest.fixture
def config(tmp_path: Path) -> GraceConfig:
    """Two updates a step of four instances each, half as many stored ones."""
    sizes = ["job.batch_size=8", "objective.mini_batch_size=4", "objective.replay.share=0.5"]
    return compose_config(["+experiment=demo_tiny", "objective=copg", *sizes], tmp_path)


def process(rank: int, world: int, whole: list[int]) -> Any:
    return SimpleNamespace(
        trainer=SimpleNamespace(world_size=world),
        global_rank=rank,
        device=torch.device("cpu"),
        gather=lambda tensor: torch.tensor(whole),
    )


def store(config: GraceConfig, count: int) -> StoredInstances:
    found = StoredInstances(config)
    found.add(rollouts(*range(100, 100 + count)), SCORES)
    return found


def indices(found: Rollouts) -> list[int]:
    return [one.instance.index for one in found.instances]


def test_every_update_gets_its_share_and_the_stored_ones_bring_their_log_probs(config: GraceConfig) -> None:
    fresh = list(range(8))
    found = store(config, 20).joined(rollouts(*fresh), process(0, 1, fresh), step=5)
    numbers = indices(found)
    assert [number < 100 for number in numbers] == ([True] * 4 + [False] * 2) * 2
    assert [number for number in numbers if number < 100] == fresh and len(set(numbers)) == 12
    for one in found.instances:
        if one.stored:
            assert one.behaviour is not None and one.behaviour[0].tolist() == [-one.instance.index, -5]


def test_two_processes_share_what_one_takes(config: GraceConfig) -> None:
    whole = store(config, 20).joined(rollouts(*range(8)), process(0, 1, list(range(8))), step=5)
    parts = []
    for rank, own in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
        found = store(config, 20).joined(rollouts(*own), process(rank, 2, [0, 1, 4, 5, 2, 3, 6, 7]), step=5)
        parts.append(indices(found))
    for update in range(2):
        ours = [number for part in parts for number in part[update * 3 : update * 3 + 3]]
        assert sorted(ours) == sorted(indices(whole)[update * 6 : update * 6 + 6])


def test_what_is_in_the_batch_is_not_drawn_and_an_empty_store_gives_nothing(config: GraceConfig) -> None:
    fresh = [*range(100, 108)]
    assert indices(store(config, 8).joined(rollouts(*fresh), process(0, 1, fresh), step=0)) == fresh
    assert indices(StoredInstances(config).joined(rollouts(*fresh), process(0, 1, fresh), step=0)) == fresh


def test_only_what_was_written_in_the_step_is_stored(config: GraceConfig) -> None:
    found = store(config, 4)
    mixed = rollouts(1, 2)
    mixed = mixed.only([mixed.instances[0], replace(mixed.instances[1], behaviour=[])])
    found.add(mixed, SCORES)
    assert [row["instance"][0] for row in found.state_dict()] == [100, 101, 102, 103, 1]
    other = StoredInstances(config)
    other.load_state_dict(found.state_dict())
    again, before = (one.joined(rollouts(*range(8)), process(0, 1, list(range(8))), step=2) for one in (other, found))
    assert indices(again) == indices(before) and len(again.instances) > 8
