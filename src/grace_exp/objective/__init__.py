"""Turn rewards into a loss: pure functions without a model."""

from grace_exp.objective.kl import KL_ESTIMATORS
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm, LossFunction, LossInputs
from grace_exp.objective.registry import (
    ALGORITHMS,
    compute_advantages,
    needs_greedy_baseline,
    needs_reference,
    needs_reference_kl,
    shaped_rewards,
)

__all__ = [
    "ALGORITHMS",
    "KL_ESTIMATORS",
    "AdvantageInputs",
    "Algorithm",
    "LossFunction",
    "LossInputs",
    "compute_advantages",
    "needs_greedy_baseline",
    "needs_reference",
    "needs_reference_kl",
    "shaped_rewards",
]
