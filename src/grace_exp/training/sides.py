"""The trained sides of a step: what their rationales got, the figures about it, and what an update is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grace_exp.data.batch import Role
from grace_exp.reward import Reward, RewardInputs, embedding_metrics
from grace_exp.training.mismatch import engine_logprobs
from grace_exp.training.rollouts import Rollouts
from grace_exp.training.scores import StepScores
from grace_exp.training.update import MiniBatch


@dataclass(frozen=True, eq=False)
class Side:
    """The groups of one trained text, over all processes.

    Attributes:
        role: Which text.
        inputs: What the reward is computed from.
        reward: Of every rationale.
        shaped: The final reward with the objective's punishments and penalties, [groups, K].
        advantages: [groups, K].
        reference_kl: Of a penalty in the reward: estimated KL of each rationale, [groups, K] nats.
    """

    role: Role
    inputs: RewardInputs
    reward: Reward
    shaped: Tensor
    advantages: Tensor
    reference_kl: Tensor | None = None

    def figures(self) -> dict[str, Tensor]:
        """What the samples table shows of a rationale, each [groups, K]."""
        return dict(self.reward.terms) | {
            "total": self.reward.total,
            "final": self.reward.final,
            "advantage": self.advantages,
        }

    def metrics(self) -> dict[str, float]:
        """`reward/*`, `embed/*`, and what was written, `rollout/*`."""
        lengths = self.inputs.lengths.double()
        penalty = {}
        if self.reference_kl is not None:
            penalty["train/kl_reference"] = (self.reference_kl.sum() / lengths.sum()).item()
        return {
            **self.reward.metrics(),
            **embedding_metrics(self.inputs),
            "rollout/tokens_mean": lengths.mean().item(),
            "rollout/tokens_max": lengths.max().item(),
            "rollout/truncated_share": self.inputs.truncated.double().mean().item(),
            "train/advantage_abs": self.advantages.abs().mean().item(),
            **penalty,
        }


def side_metrics(sides: Sequence[Side]) -> dict[str, float]:
    """The figures of all sides.

    Of one trained side, its own. Of two, under each name the mean of both (the largest, of a largest), so that a figure
    means the same whatever is trained, and each side's own behind its name: `positive/reward/total/mean`.
    """
    parts = {side.role.value: side.metrics() for side in sides}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    if len(parts) == 1:
        (only,) = parts.values()
        return only
    metrics: dict[str, float] = {}
    for name in names:
        values = [part[name] for part in parts.values()]
        metrics[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return metrics | {f"{role}/{name}": value for role, part in parts.items() for name, value in part.items()}


def trained_batch(
    rollouts: Rollouts, scores: StepScores, sides: Sequence[Side], own: Callable[[Tensor], Tensor]
) -> MiniBatch:
    """What this process's updates are made from: the groups in the order of `rollouts.group`.

    Args:
        rollouts: Of this process.
        scores: Of the step.
        sides: In the order of `rollouts.roles`, of all processes.
        own: This process's rows of a tensor of all.
    """

    def groups(values: Callable[[Side], Tensor]) -> Tensor:
        """[instances x sides, K]."""
        return torch.stack([own(values(side)) for side in sides], dim=1).flatten(0, 1)

    group = rollouts.group
    device = groups(lambda side: side.advantages).device
    rows = scores.rows(group)
    for place, written in enumerate(rollouts.written):
        if written.behaviour is not None:
            first = place * rollouts.per_instance
            rows[first : first + rollouts.per_instance] = [row.to(device) for row in written.behaviour]
    old = pad_sequence(rows, batch_first=True)
    return MiniBatch(
        sequences=[rollout.sequence() for rollout in group],
        advantages=groups(lambda side: side.advantages),
        old_logprobs=old,
        rewards=groups(lambda side: side.shaped),
        kept=groups(lambda side: side.reward.kept),
        engine_logprobs=engine_logprobs([rollout.completion for rollout in group], old),
        rollouts=group,
        forwards=scores.passes,
    )
