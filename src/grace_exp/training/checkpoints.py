"""Checkpoints at step boundaries, and a clean stop on Ctrl-C or SIGTERM."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer

from grace_exp.config.advice import override
from grace_exp.config.callbacks import CheckpointConfig
from grace_exp.errors import GraceError
from grace_exp.tracking.atomic import atomic_path
from grace_exp.training.module import step_module

FOLDER = "checkpoints"
BEST = "best.ckpt"


class Interrupted(GraceError):
    """The run was asked to stop; its state is in a checkpoint."""


def checkpoint_path(run_dir: Path, completed_steps: int) -> Path:
    """Return the path of the checkpoint after that many steps."""
    return run_dir / FOLDER / f"step-{completed_steps:06d}.ckpt"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint with the most steps in a run folder; None if there is none."""
    return max(_checkpoints(run_dir), key=_steps_of, default=None)


@rank_zero_only
def drop_checkpoints_after(run_dir: Path, completed_steps: int) -> None:
    """Delete checkpoints with more steps; a run that continues from an earlier one has left them behind."""
    for path in _checkpoints(run_dir):
        if _steps_of(path) > completed_steps:
            path.unlink()


class StepCheckpoints(Callback):
    """Saves every n GRACE steps, at the last step and when the run stops; keeps the newest and the best ones.

    Lightning's own callback counts optimizer updates, of which a step has several. A resumed run compares with the best
    value of its checkpoint.
    """

    def __init__(self, config: CheckpointConfig, run_dir: Path, steps: int) -> None:
        """Save under `run_dir`; `steps` is the last step's number, counted from 1."""
        self._config = config
        self._run_dir = run_dir
        self._steps = steps
        self._best: float | None = None
        self._best_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete a best checkpoint that is not from this run."""
        if trainer.is_global_zero and self._config.monitor is not None and self._best is None:
            (self._run_dir / FOLDER / BEST).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if it is time."""
        module = step_module(pl_module)
        completed = module.completed_steps
        if self._config.monitor is not None:
            self._compare(trainer, completed, module.history[-1].get(self._config.monitor))
        every = self._config.every_n_steps
        if trainer.should_stop or completed == self._steps or (every and completed % every == 0):
            self.save(trainer, completed)

    def save(self, trainer: Trainer, completed: int) -> Path:
        """Write the checkpoint of `completed` steps and delete the oldest beyond `keep`; all processes must call it."""
        path = checkpoint_path(self._run_dir, completed)
        _write(trainer, path)
        if trainer.is_global_zero:
            for old in sorted(_checkpoints(self._run_dir), key=_steps_of)[: -self._config.keep]:
                old.unlink()
        return path

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, its metric, and its number of steps."""
        return {"monitor": self._config.monitor, "mode": self._mode, "best": self._best, "at": self._best_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value, unless another metric is watched now."""
        if (state_dict["monitor"], state_dict["mode"]) == (self._config.monitor, self._mode):
            self._best, self._best_at = state_dict["best"], state_dict.get("at")

    def better_than_last(self) -> Path | None:
        """Return the best checkpoint, if one is kept and it is not that of the last step."""
        path = self._run_dir / FOLDER / BEST
        return path if self._config.monitor is not None and self._best_at != self._steps and path.is_file() else None

    @property
    def _mode(self) -> str:
        return self._config.mode or ("max" if (self._config.monitor or "").startswith("val/") else "min")

    def _compare(self, trainer: Trainer, completed: int, figure: float | None) -> None:
        """Save if the step's value is the best so far; it is None if the metric was not measured."""
        sign = 1 if self._mode == "max" else -1
        better = (
            figure is not None and math.isfinite(figure) and (self._best is None or sign * (figure - self._best) > 0)
        )
        if trainer.strategy.broadcast(better):  # the first process decides, in case of rounding
            self._best, self._best_at = figure, completed
            _write(trainer, self._run_dir / FOLDER / BEST)


class GracefulStop(Callback):
    """The first Ctrl-C or SIGTERM ends the run after the present step, with a checkpoint; the second ends it at once.

    A step that is cut off has made a part of its updates and could not be resumed. A run whose last step is done is not
    interrupted: it still measures and exports. It must come before `StepCheckpoints` in the list of callbacks.
    """

    def __init__(self, run_dir: Path, steps: int, announce: Callable[[str], None]) -> None:
        """Prepare to catch signals.

        Args:
            run_dir: The run folder, for the message.
            steps: Number of steps of the run.
            announce: Called with a message for the terminal when a signal arrives.
        """
        self._run_dir = run_dir
        self._steps = steps
        self._announce = announce
        self._previous: dict[int, Any] = {}
        self._signal: str | None = None
        self._stopped_after: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._signal = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._announce(f"\n{self._signal}: stopping after this step (again: stop at once, losing it)")

        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, stop)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop all processes after the same step, even if the signal reached them at different times or one only."""
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            trainer.should_stop = True
            self._stopped_after = step_module(pl_module).completed_steps

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run before its last step; the answer is the same on all processes."""
        return self._stopped_after is not None and self._stopped_after < self._steps

    def raise_if_interrupted(self) -> None:
        """Say after `fit` where the checkpoint is.

        Raises:
            Interrupted: A signal ended the run before its last step.
        """
        if self.stopped and self._stopped_after is not None:
            raise Interrupted(
                f"stopped by {self._signal or 'a signal to another process'} after step {self._stopped_after} of "
                f"{self._steps}; saved {checkpoint_path(self._run_dir, self._stopped_after)}\n"
                f"Continue with the same command and {override('job.resume', self._run_dir)}"
            )


def _write(trainer: Trainer, path: Path) -> None:
    if not trainer.is_global_zero:
        trainer.save_checkpoint(path)  # takes part, but writes no file
        return
    # Lightning writes into the system's temporary folder and moves the file. Between file systems this is a copy, and
    # a kill would cut it off.
    with atomic_path(path) as temporary:
        trainer.save_checkpoint(temporary)


def _checkpoints(run_dir: Path) -> list[Path]:
    return list((run_dir / FOLDER).glob("step-*.ckpt"))


def _steps_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
