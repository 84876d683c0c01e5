"""Warn early of a collapse, and end the run if the settings say so."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.root import GraceConfig
from grace_exp.errors import GraceError
from grace_exp.training.checkpoints import BEST, FOLDER
from grace_exp.training.collapse import Collapse
from grace_exp.training.module import step_module


class Collapsed(GraceError):
    """The watchdog ended the run; its state is in a checkpoint."""


class Watchdog(Callback):
    """Watches every step; see `training.collapse` for the signs.

    It must come before `StepCheckpoints` in the list of callbacks, so that a checkpoint is saved where it stops.
    Metrics are the same on all processes, so all of them stop.
    """

    def __init__(self, config: GraceConfig, warn: Callable[[int, str, str], None]) -> None:
        """Start watching.

        Args:
            config: The settings of the run, with `callbacks.watchdog` set.
            warn: Called with (step, kind, message) for each finding.
        """
        assert config.callbacks.watchdog is not None
        self._config = config
        self._stop = config.callbacks.watchdog.stop
        self._warn = warn
        self._collapse = Collapse(config.callbacks.watchdog, truncation=config.reward.truncation.mode != "none")
        self._stopped: tuple[int, str] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe the earlier steps of a resumed run, which have been reported."""
        for row in step_module(pl_module).history:
            self._collapse.observe(row)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Observe the step's metrics."""
        row = step_module(pl_module).history[-1]
        for kind, message in self._collapse.observe(row):
            self._warn(int(row["step"]), f"watchdog/{kind}", f"watchdog: {message}")
            if self._stop and self._stopped is None:
                self._stopped = int(row["step"]) + 1, message
                trainer.should_stop = True

    def raise_if_collapsed(self) -> None:
        """Say after `fit` why the run ended.

        Raises:
            Collapsed: The watchdog ended it before its last step.
        """
        if self._stopped is None or self._stopped[0] == self._config.job.steps:
            return
        step, message = self._stopped
        kept = f"{self._config.run_dir}/{FOLDER}"
        best = f"; the best one is {BEST}" if self._config.callbacks.checkpoint.monitor is not None else ""
        raise Collapsed(
            f"stopped by callbacks.watchdog.stop=true after step {step} of {self._config.job.steps}: {message}\n"
            f"Checkpoints are in {kept}{best}. A lower optim.learning_rate or a KL penalty (objective.kl.coefficient) "
            "often holds a policy"
        )
