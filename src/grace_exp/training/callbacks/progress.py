"""The live display: step, reward, rationale length, time left."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from grace_exp.training.module import step_module

IN_BATCH = "embed/in_batch_accuracy"
REWARD = "reward/final/mean"
LENGTH = "rollout/tokens_mean"


class ProgressDisplay(Callback):
    """A rich progress bar on a terminal, one line a step elsewhere."""

    def __init__(self, steps: int, *, live: bool, console: Console) -> None:
        """Set up the bar.

        Args:
            steps: Number of steps of the run.
            live: Whether to draw a bar; without a terminal lines are printed.
            console: The console to print to.
        """
        self._steps = steps
        self._console = console
        self._live = live and console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            console=console,
        )
        self._task = self._progress.add_task("train", total=steps, figures="first step ...")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the step of a resumed run."""
        if trainer.is_global_zero and self._live:
            self._progress.update(self._task, completed=step_module(pl_module).completed_steps)
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Show the step's metrics."""
        if not trainer.is_global_zero:
            return
        module = step_module(pl_module)
        row = module.history[-1]
        figures = [
            f"reward {row[REWARD]:+.2f}" if REWARD in row else f"loss {row['train/loss']:.3f}",
            *([f"in-batch {row[IN_BATCH]:.2f}"] if IN_BATCH in row else []),  # missing with one instance
            *([f"length {row[LENGTH]:.0f}"] if LENGTH in row else []),  # not all methods write rationales
            f"{row['time/step']:.1f} s/step",
        ]
        if self._live:
            self._progress.update(self._task, completed=module.completed_steps, figures="  ".join(figures))
        else:
            line = "  ".join([f"step {module.completed_steps}/{self._steps}", *figures])
            self._console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the terminal."""
        self._progress.stop()
