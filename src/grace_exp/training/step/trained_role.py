"""The trained roles of a step: rewards of their rationales, metrics, and the mini-batch of an update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grace_exp.data.batch import Role
from grace_exp.reward import Reward, RewardInputs, embedding_metrics
from grace_exp.training.step.mismatch import engine_logprobs
from grace_exp.training.step.pathwise_part import PathwisePart
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.step_scores import StepScores
from grace_exp.training.step.update import MiniBatch


@dataclass(frozen=True, eq=False)
class TrainedRole:
    """The groups of one trained text, over all processes.

    Attributes:
        role: The trained text.
        inputs: The inputs of the reward.
        reward: The reward of every rationale.
        shaped_GK: The final reward with team credit, and the objective's punishments and penalties, [groups, K].
        advantages_GK: [groups, K].
        reference_kl_GK: With a penalty in the reward: the estimated KL of each rationale, [groups, K] nats.
        team_credit_GK: The part of `shaped_GK` that comes from other texts' rewards, [groups, K]; None: no team credit.
    """

    role: Role
    inputs: RewardInputs
    reward: Reward
    shaped_GK: Tensor
    advantages_GK: Tensor
    reference_kl_GK: Tensor | None = None
    team_credit_GK: Tensor | None = None

    def figures(self) -> dict[str, Tensor]:
        """Return the values that the samples table shows of a rationale, each [groups, K]."""
        return dict(self.reward.terms) | {
            "total": self.reward.total_GK,
            "final": self.reward.final_GK,
            "advantage": self.advantages_GK,
        }

    def metrics(self) -> dict[str, float]:
        """Return the metrics `reward/*`, `embed/*` and `rollout/*`."""
        lengths_GK = self.inputs.lengths_GK.double()
        extra = {}
        if self.team_credit_GK is not None:
            extra["train/team_credit_abs"] = self.team_credit_GK.abs().mean().item()
        if self.reference_kl_GK is not None:
            extra["train/kl_reference"] = (self.reference_kl_GK.sum() / lengths_GK.sum()).item()
        return {
            **self.reward.metrics(),
            **embedding_metrics(self.inputs),
            "rollout/tokens_mean": lengths_GK.mean().item(),
            "rollout/tokens_max": lengths_GK.max().item(),
            "rollout/truncated_share": self.inputs.truncated_GK.double().mean().item(),
            "train/advantage_abs": self.advantages_GK.abs().mean().item(),
            **extra,
        }


def role_metrics(trained_roles: Sequence[TrainedRole]) -> dict[str, float]:
    """Return the metrics of all trained roles.

    With one trained role these are its own. With two, each name has the mean of both (for maxima the larger), so that a
    metric means the same for every choice of roles. Each role's own metrics begin with its name:
    `positive/reward/total/mean`.
    """
    parts = {trained_role.role.value: trained_role.metrics() for trained_role in trained_roles}
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
    rollouts: Rollouts,
    scores: StepScores,
    trained_roles: Sequence[TrainedRole],
    own_rows: Callable[[Tensor], Tensor],
    pathwise: Callable[[int, int], PathwisePart] | None = None,
) -> MiniBatch:
    """Return the mini-batch of this process's updates, with the groups in the order of `rollouts.group`.

    Args:
        rollouts: Rollouts of this process.
        scores: Scores of the step.
        trained_roles: Trained roles in the order of `rollouts.roles`, of all processes.
        own_rows: Returns this process's rows of a gathered tensor.
        pathwise: As in `MiniBatch`.
    """

    def groups(values: Callable[[TrainedRole], Tensor]) -> Tensor:
        """Return the values as [instances x trained roles, K]."""
        return torch.stack([own_rows(values(trained_role)) for trained_role in trained_roles], dim=1).flatten(0, 1)

    group = rollouts.group
    device = groups(lambda trained_role: trained_role.advantages_GK).device
    rows = scores.rows(group)
    for place, written in enumerate(rollouts.instances):
        if written.behaviour is not None:
            first = place * rollouts.per_instance
            rows[first : first + rollouts.per_instance] = [row.to(device) for row in written.behaviour]
    old_NT = pad_sequence(rows, batch_first=True)
    return MiniBatch(
        sequences=[rollout.sequence() for rollout in group],
        advantages_GK=groups(lambda trained_role: trained_role.advantages_GK),
        old_logprobs_NT=old_NT,
        rewards_GK=groups(lambda trained_role: trained_role.shaped_GK),
        kept_GK=groups(lambda trained_role: trained_role.reward.kept_GK),
        engine_logprobs_NT=engine_logprobs([rollout.completion for rollout in group], old_NT),
        rollouts=group,
        forwards=scores.passes,
        pathwise=pathwise,
    )
