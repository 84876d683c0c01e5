"""Warn once that the engine's probabilities differ too much from the trainer's."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.training.module import step_module

_FIGURE = "mismatch/ess_sequence"


class MismatchWarning(Callback):
    """Watches the effective sample size of the rationales under the trainer's probabilities."""

    def __init__(self, config: GraceConfig, warn: Callable[[int, str, str], None]) -> None:
        """Start watching.

        Args:
            config: The settings of the run.
            warn: Called with (step, kind, message) for each finding, see `tracking.run_warnings`.
        """
        self._engine = config.rollout.engine
        self._importance = config.objective.importance
        self._ahead = config.rollout.overlap != "none"
        self._warn = warn
        self._said = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Check the step's metric."""
        row = step_module(pl_module).history[-1]
        figure = row.get(_FIGURE)
        if self._said or not trainer.is_global_zero or figure is None or not figure < self._importance.warn_below:
            return
        self._said = True
        message = (
            f"{_FIGURE} = {figure:.2g} is below objective.importance.warn_below={self._importance.warn_below:g}: "
            f"rollout={self._engine} no longer writes what the trainer would write. {self._advice()}"
        )
        self._warn(int(row["step"]), "mismatch", message)

    def _advice(self) -> str:
        """Return what to try next; it depends on the corrections in use."""
        if self._engine == "transformers":
            return "Look at mismatch/logprob_abs_max for single tokens"
        if self._ahead:
            return (
                "With rollout.overlap its weights are one step old: a lower optim.learning_rate, or "
                "rollout.overlap=none, brings them together"
            )
        correct = "objective.importance.mode=token corrects each token, " if self._importance.mode == "none" else ""
        return (
            f"{correct}rollout.vllm.dtype=float32 is as exact as the trainer, and rollout.vllm.probe=true stops "
            "a run whose engine has other weights"
        )
