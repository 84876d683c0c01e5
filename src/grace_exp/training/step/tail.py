"""The longest rationales of a step, which everything else waits for: how much that is, and where it ends."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from grace_exp.config.rollout import RolloutConfig
from grace_exp.training.step.rollouts import Rollouts

_ENDED = 0.9
"""Share of a step's rationales behind which its tail begins."""


class Tail:
    """Lengths of what a step wrote, over all processes, and the token budget that follows from them for the next.

    Attributes:
        budget: Longest rationale of the next step that is written, tokens.
    """

    def __init__(self, config: RolloutConfig) -> None:
        """Start with `rollout.max_tokens`."""
        self._config = config
        self.budget = config.max_tokens

    def observe(self, rollouts: Rollouts, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Take in a step.

        Args:
            rollouts: What this process wrote in the step, anchors and negatives included.
            total: Sums over processes.
            device: For that sum.

        Returns:
            `rollout/tail_share`: 1 - (length that 90 % of the rationales do not exceed) / (the longest). It is the
            share of decoding steps that are left when 90 % have ended, where all are decoded side by side; engines
            that decode them in several batches wait less.
            `rollout/token_budget`, with `rollout.tail`: what these rationales were allowed.
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
    """The least length that so large a share does not exceed; `ended` counts rationales by length, [lengths]."""
    # A little less, for 0.9 x 10 is more than 9 in binary.
    return int(torch.searchsorted(ended, (share * ended[-1]) * (1 - 1e-9)).item())
