"""Warn once that an update was skipped because its loss or gradient was nan or inf."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.training.module import step_module


class SkippedUpdatesWarning(Callback):
    """Watches the count of skipped updates; `optim.on_nonfinite=skip` lets a run continue after them."""

    def __init__(self, warn: Callable[[int, str, str], None]) -> None:
        """Start watching.

        Args:
            warn: Called with (step, kind, message) for each finding, see `tracking.run_warnings`.
        """
        self._warn = warn
        self._before: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the earlier steps of a resumed run, which have been reported."""
        self._before = step_module(pl_module).skipped_updates

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Observe the step's metrics."""
        module = step_module(pl_module)
        if not trainer.is_global_zero or self._before is None or module.skipped_updates == self._before:
            return
        self._before = None
        step = int(module.history[-1]["step"])
        self._warn(
            step,
            "skipped_updates",
            f"an update of step {step} was skipped: its loss or gradient was nan or inf (folder nonfinite/). If more "
            "follow, lower optim.learning_rate; optim.on_nonfinite=stop ends the run at the first",
        )
