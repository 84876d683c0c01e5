"""Warn once of each reward term that trains nothing."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.reward import InertTerms
from grace_exp.training.module import step_module
from grace_exp.training.step.rollouts import SIDES, TRAINED_ROLES


class InertTermsWarning(Callback):
    """Watches each term's share in the advantages; see `reward.inert`."""

    def __init__(self, config: GraceConfig, warn: Callable[[int, str, str], None]) -> None:
        """Start watching.

        Args:
            config: The settings of the run.
            warn: Called with (step, kind, message) for each finding, see `tracking.run_warnings`.
        """
        roles = TRAINED_ROLES[config.rollout.policy_role]
        # With several trained roles each has its own metrics, named after it
        # (`training.step.trained_role.role_metrics`).
        objective = config.objective
        other_ways = {"pathwise": objective.pathwise.weight > 0, "team_credit": objective.team_credit > 0}
        self._watched = [
            (f"{role}/" if len(roles) > 1 else "", InertTerms(config.reward, trained=SIDES[role], **other_ways))
            for role in roles
        ]
        self._warn = warn

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Observe the step's metrics."""
        row = step_module(pl_module).history[-1]
        if not trainer.is_global_zero or "reward/zero_spread_share" not in row:  # a step without reward
            return
        for side, terms in self._watched:
            side_metrics = {name.removeprefix(side): value for name, value in row.items() if name.startswith(side)}
            for text in terms.observe(side_metrics):
                message = f"{side.rstrip('/')}: {text}" if side else text
                self._warn(int(row["step"]), "inert_term", message)
