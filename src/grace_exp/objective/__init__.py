"""From rewards to a loss: pure functions that know no model."""

from grace_exp.objective.advantage import group_advantages
from grace_exp.objective.grpo import grpo_loss
from grace_exp.objective.inputs import LossFunction, LossInputs
from grace_exp.objective.kl import KL_ESTIMATORS

LOSSES: dict[str, LossFunction] = {"grpo": grpo_loss}
"""By `ObjectiveConfig.name`."""

__all__ = ["KL_ESTIMATORS", "LOSSES", "LossFunction", "LossInputs", "group_advantages", "grpo_loss"]
