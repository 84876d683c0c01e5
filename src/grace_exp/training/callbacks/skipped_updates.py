"""Warns once of an update that was left out because its loss or gradient was nan or inf."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.training.module import step_module


class SkippedUpdatesWarning(Callback):
    """Watches the count of such updates, which `optim.on_nonfinite=skip` lets a run survive."""

    def __init__(self, warn: Callable[[int, str, str], None]) -> None:
        """Start watching.

        Args:
            warn: Told (step, kind, message) of what was found, see `tracking.run_warnings`.
        """
        self._warn = warn
        self._before: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a resumed run, take in the steps before; what they showed was said then."""
        self._before = step_module(pl_module).skipped_updates

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take in the step."""
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
