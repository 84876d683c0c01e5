"""How often the rationales of a step failed to find their instances."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grace_exp.reward import in_batch_misses
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.trained_role import TrainedRole


def missed_shares(
    rollouts: Rollouts, trained_roles: Sequence[TrainedRole], gather: Callable[[Tensor], Tensor]
) -> dict[int, float]:
    """Return the share of each instance's new rationales that missed their own anchor, by the instance's index.

    With several trained roles it is their mean. Instances that an earlier step wrote are rivals, but have no share.

    Args:
        rollouts: Rollouts of this process.
        trained_roles: Trained roles of all processes.
        gather: Concatenates a tensor over processes along the first dimension, in rank order.
    """
    missed = torch.stack([in_batch_misses(trained.inputs) for trained in trained_roles]).mean(dim=0)
    own = [(written.instance.index, written.stored) for written in rollouts.instances]
    instances = gather(torch.tensor(own, device=missed.device)).tolist()
    return {index: share for (index, stored), share in zip(instances, missed.tolist(), strict=True) if not stored}
