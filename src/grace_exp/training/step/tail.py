"""The longest rationales of a step, for which everything else waits: their share of the time, and a limit."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from grace_exp.config.rollout import RolloutConfig
from grace_exp.training.step.rollouts import Rollouts

_ENDED = 0.9
"""Share of a step's rationales after which its tail begins."""


class Tail:
    """The lengths of a step's rationales, over all processes, and the token budget of the next step.

    Attributes:
        budget: Token limit of a rationale in the next step.
    """

    def __init__(self, config: RolloutConfig) -> None:
        """Start with `rollout.max_tokens`."""
        self._config = config
        self.budget = config.max_tokens

    def observe(self, rollouts: Rollouts, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Observe the lengths of a step.

        Args:
            rollouts: Rollouts of this process, anchors and negatives included.
            total: Returns the sum over processes.
            device: Device for that sum.

        Returns:
            `rollout/tail_share`: 1 - (length that 90 % of the rationales do not exceed) / (the longest). It is the
            share of decoding steps after 90 % have ended, if all are decoded at once; engines that decode in several
            batches wait less. `rollout/token_budget`, with `rollout.tail`: the limit of these rationales.
        """
        lengths = [len(rollout.completion.token_ids) for rollout in (*rollouts.group, *rollouts.others())]
        own = torch.bincount(torch.tensor(lengths, dtype=torch.long), minlength=self._config.max_tokens + 1)
        ended = total(own.to(device, torch.float32)).double().cpu().cumsum(0)
        longest = _length_of(ended, 1.0)
        figures = {"rollout/tail_share": 1 - _length_of(ended, _ENDED) / longest if longest else 0.0}
        tail = self._config.tail
        if tail is not None:
            figures["rollout/token_budget"] = float(self.budget)
            length = math.ceil(tail.margin * _length_of(ended, tail.quantile))
            self.budget = min(self._config.max_tokens, max(1, length))
        return figures


def _length_of(ended: Tensor, share: float) -> int:
    """Return the least length that this share does not exceed; `ended` counts rationales by length, [lengths]."""
    # Slightly less, because 0.9 x 10 is more than 9 in binary.
    return int(torch.searchsorted(ended, (share * ended[-1]) * (1 - 1e-9)).item())
