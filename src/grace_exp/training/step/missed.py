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
    """Share of the rationales written in this step that missed their own anchor, by the instance's index.

    Of several trained roles the mean. Instances that an earlier step wrote are rivals, and have no figure.

    Args:
        rollouts: Of this process.
        trained_roles: Of all processes.
        gather: Concatenates over processes along the first dimension, in rank order.
    """
    missed = torch.stack([in_batch_misses(trained.inputs) for trained in trained_roles]).mean(dim=0)
    own = [(written.instance.index, written.stored) for written in rollouts.instances]
    instances = gather(torch.tensor(own, device=missed.device)).tolist()
    return {index: share for (index, stored), share in zip(instances, missed.tolist(), strict=True) if not stored}
