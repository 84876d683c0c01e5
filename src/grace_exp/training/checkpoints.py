"""Checkpoints at step boundaries, and a clean stop on Ctrl-C or SIGTERM."""

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.callbacks import CheckpointConfig
from grace_exp.errors import GraceError

if TYPE_CHECKING:
    from grace_exp.training.grace import GraceModule

FOLDER = "checkpoints"


class Interrupted(GraceError):
    """The run was asked to stop; its state is in a checkpoint."""


def checkpoint_path(run_dir: Path, completed_steps: int) -> Path:
    """Where the checkpoint after that many steps is."""
    return run_dir / FOLDER / f"step-{completed_steps:06d}.ckpt"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the most steps in a run folder, None if there is none."""
    return max((run_dir / FOLDER).glob("step-*.ckpt"), default=None)


class StepCheckpoints(Callback):
    """Saves every n GRACE steps and at the last; keeps the newest.

    Lightning's own callback counts optimizer updates, of which a step has several. Lightning writes files whole or not at all.
    """

    def __init__(self, config: CheckpointConfig, run_dir: Path, steps: int) -> None:
        self._config = config
        self._run_dir = run_dir
        self._steps = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save where it is time."""
        completed = _completed(pl_module)
        every = self._config.every_n_steps
        if trainer.should_stop or completed == self._steps or (every and completed % every == 0):
            self.save(trainer, completed)

    def save(self, trainer: Trainer, completed: int) -> Path:
        """Write the checkpoint of `completed` steps and drop the oldest beyond `keep`."""
        path = checkpoint_path(self._run_dir, completed)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in sorted((self._run_dir / FOLDER).glob("step-*.ckpt"))[: -self._config.keep]:
                old.unlink()
        return path


class GracefulStop(Callback):
    """The first Ctrl-C or SIGTERM ends the run after the step under way, with a checkpoint; the second one at once.

    A step that is cut in two has updated part of its mini-batches: it could not be resumed.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._previous: dict[int, Any] = {}
        self.signal: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number).name
            trainer.should_stop = True
            self._restore()
            trainer.print(f"\n{self.signal}: stopping after this step (again: stop at once, losing it)")

        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def raise_if_stopped(self) -> None:
        """After `fit`: tell the user where the state is.

        Raises:
            Interrupted: A signal ended the run.
        """
        if self.signal is not None:
            raise Interrupted(
                f"stopped by {self.signal}; saved {newest_checkpoint(self._run_dir)}\n"
                f"Continue with the same command and job.resume={self._run_dir}"
            )


def _completed(module: LightningModule) -> int:
    grace: GraceModule = module  # type: ignore[assignment]
    return grace.completed_steps
