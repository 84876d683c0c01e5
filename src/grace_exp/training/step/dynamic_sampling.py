"""Dynamic sampling: other instances in place of those whose groups teach nothing (DAPO, arXiv 2503.14476)."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from grace_exp.data.batch import Instance
from grace_exp.objective.dapo import informative_groups
from grace_exp.rollout.protocol import derive_seed
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.trained_role import TrainedRole


class Resampler:
    """The exchanges of one step, round by round.

    An instance none of whose trained texts has rewards that differ makes room for another of the same source, so that
    the mixture stays as it is. Which one follows from (run seed, step, round, the instance that goes) and from what the
    step holds already, not from the processes: nothing has to be kept for a resume. The schedule of the data is left
    alone: the new ones are drawn at random, beside its epochs.
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
            seed: Of the run.
            step: Of the run.
            gather: Concatenates over processes along the first dimension, in rank order.
            another: From an instance's index, a seed and indices to leave out to another instance of its source.
        """
        self._seed = seed
        self._step = step
        self._gather = gather
        self._another = another
        self._taken: set[int] = set()
        self._found: dict[int, Instance] = {}
        self._rounds = self._dropped = 0

    def next(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> dict[int, Instance]:
        """Another instance for each that goes, by the index of the latter, of all processes; {} when none goes."""
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
        """The step's rollouts with `new` in the places of those that `next` gave away."""
        written = {written.instance.index: written for written in new.instances}
        others = [self._found.get(present.instance.index) for present in rollouts.instances]
        return rollouts.only(
            [
                written[other.index] if other else present
                for present, other in zip(rollouts.instances, others, strict=True)
            ]
        )

    def metrics(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> dict[str, float]:
        """`rollout/*`: rounds, instances exchanged in them, and instances left without spread."""
        return {
            "rollout/extra_rounds": float(self._rounds),
            "rollout/zero_spread_dropped": float(self._dropped),
            "rollout/zero_spread_left": float(self._silent(rollouts, trained_roles)[1].sum().item()),
        }

    def _silent(self, rollouts: Rollouts, trained_roles: Sequence[TrainedRole]) -> tuple[Tensor, Tensor]:
        """Of all processes: the instances' indices, and whether a fresh one has no spread, both [instances]."""
        device = trained_roles[0].shaped.device
        indices = self._gather(torch.tensor([present.instance.index for present in rollouts.instances], device=device))
        stored = self._gather(torch.tensor([present.stored for present in rollouts.instances], device=device))
        informative = torch.stack(
            [informative_groups(trained_role.shaped, trained_role.reward.kept_GK) for trained_role in trained_roles]
        ).any(dim=0)
        return indices, ~informative & ~stored
