"""Draw a step's stored instances from the replay buffer and add new ones, on any number of processes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from grace_exp.config.root import GraceConfig
from grace_exp.rollout.protocol import derive_seed
from grace_exp.training.module import StepModule
from grace_exp.training.step.replay import ReplayBuffer
from grace_exp.training.step.rollouts import InstanceRollouts, Rollouts
from grace_exp.training.step.step_scores import StepScores


class StoredInstances:
    """The replay buffer, which is the same in every process.

    A stored instance joins a step as if it had just been written: it is scored with the present weights and rewarded
    among the present instances. Only its behaviour log-probs are those of the step that wrote it.
    """

    def __init__(self, config: GraceConfig) -> None:
        """Start empty."""
        assert config.objective.replay is not None
        self._buffer = ReplayBuffer(config.objective.replay.capacity)
        self._seed = config.seed
        self._updates = config.job.batch_size // config.objective.mini_batch_size
        self._per_update = round(config.objective.replay.share * config.objective.mini_batch_size)

    def joined(self, rollouts: Rollouts, module: StepModule, step: int) -> Rollouts:
        """Return the step's rollouts with this process's share of stored ones, the same number in every update."""
        written, world = rollouts.instances, module.trainer.world_size
        fresh = module.gather(
            torch.tensor([instance_rollouts.instance.index for instance_rollouts in written], device=module.device)
        )
        drawn = self._buffer.draw(
            self._per_update * self._updates, derive_seed(self._seed, step, "replay"), without=set(fresh.tolist())
        )
        share, own_share = len(drawn) // (self._updates * world), len(written) // self._updates
        together: list[InstanceRollouts] = []
        for update in range(self._updates):
            first = (update * world + module.global_rank) * share
            together += [*written[update * own_share : (update + 1) * own_share], *drawn[first : first + share]]
        return rollouts.only(together)

    def add(self, rollouts: Rollouts, scores: StepScores) -> None:
        """Store the rollouts of this step, with their log-probs."""
        new = [
            _with_behaviour(instance_rollouts, rollouts, scores)
            for instance_rollouts in rollouts.instances
            if not instance_rollouts.stored
        ]
        if dist.is_initialized():
            parts: list[list[InstanceRollouts]] = [[]] * dist.get_world_size()
            dist.all_gather_object(parts, new)
            new = [instance_rollouts for part in parts for instance_rollouts in part]
        self._buffer.add(sorted(new, key=lambda instance_rollouts: instance_rollouts.instance.index))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the stored instances for a checkpoint."""
        return self._buffer.state_dict()

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._buffer.load_state_dict(state)


def _with_behaviour(written: InstanceRollouts, rollouts: Rollouts, scores: StepScores) -> InstanceRollouts:
    # Copied, because a view would keep the whole tensor of the step.
    rows = scores.rows(rollouts.only([written]).group)
    return replace(written, behaviour=[row.cpu().clone() for row in rows])
