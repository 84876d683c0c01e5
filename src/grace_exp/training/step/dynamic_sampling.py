"""Dynamic sampling: replace instances whose groups teach nothing (DAPO, arXiv 2503.14476)."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from grace_exp.data.batch import Instance
from grace_exp.objective.dapo import informative_groups
from grace_exp.rollout.protocol import derive_seed
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.trained_role import TrainedRole


class Resampler:
    """The replacements of one step, round by round.

    An instance is replaced if no trained text of it has rewards that differ. The new instance is from the same source,
    so the mixture does not change. It is drawn from (run seed, step, round, the replaced instance) and from the
    instances that the step holds, not from the processes, so a resume needs no stored state. The schedule of the data
    does not change: new instances are drawn at random, in addition to its epochs.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        gather: Callable[[Tensor], Tensor],
        another: Callable[[int, int, Collection[int]], Instance | None],
    ) -> None:
        """Start a step.

        Args:
            seed: Seed of the run.
            step: Number of the step.
            gather: Concatenates a tensor over processes along the first dimension, in rank order.
            another: Returns another instance of the same source, from an instance's index, a seed and indices to
                exclude.
        """
        self._seed = seed
        self._step = step
        self._gather = gather
        self._another = another
        self._taken: set[int] = set()
        self._found: dict[int, Instance] = {}
        self._rounds = self._dropped = 0

    def next(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> dict[int, Instance]:
        """Return a new instance for each replaced one, by the latter's index, of all processes; {} if there is none."""
        indices, silent = self._silent(rollouts, trained_roles)
        self._taken |= set(indices.tolist())
        self._found = {}
        for index in sorted(indices[silent].tolist()):
            seed = derive_seed(self._seed, self._step, "exchange", self._rounds, index)
            other = self._another(index, seed, self._taken)
            if other is not None:
                self._found[index] = other
                self._taken.add(other.index)
        self._rounds += bool(self._found)
        self._dropped += len(self._found)
        return self._found

    def made(self, rollouts: Rollouts, new: Rollouts) -> Rollouts:
        """Return the step's rollouts with `new` in place of those that `next` replaced."""
        written = {written.instance.index: written for written in new.instances}
        others = [self._found.get(present.instance.index) for present in rollouts.instances]
        return rollouts.only(
            [
                written[other.index] if other else present
                for present, other in zip(rollouts.instances, others, strict=True)
            ]
        )

    def metrics(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> dict[str, float]:
        """Return `rollout/*`: rounds, instances replaced in them, and instances left without spread."""
        return {
            "rollout/extra_rounds": float(self._rounds),
            "rollout/zero_spread_dropped": float(self._dropped),
            "rollout/zero_spread_left": float(self._silent(rollouts, trained_roles)[1].sum().item()),
        }

    def _silent(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> tuple[Tensor, Tensor]:
        """Return the instances' indices, and whether a new one has no spread, of all processes, both [instances]."""
        device = trained_roles[0].shaped_GK.device
        indices = self._gather(torch.tensor([present.instance.index for present in rollouts.instances], device=device))
        stored = self._gather(torch.tensor([present.stored for present in rollouts.instances], device=device))
        informative = torch.stack(
            [informative_groups(trained_role.shaped_GK, trained_role.reward.kept_GK) for trained_role in trained_roles]
        ).any(dim=0)
        return indices, ~informative & ~stored
