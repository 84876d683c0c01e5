from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grace_exp.config.callbacks import CheckpointConfig
from grace_exp.training.checkpoints import (
    StepCheckpoints,
    checkpoint_path,
    drop_checkpoints_after,
    newest_checkpoint,
)


class Trainer(SimpleNamespace):
    """Writes what it is asked to save."""

    def __init__(self, *, first: bool = True, fails: bool = False) -> None:
        super().__init__(is_global_zero=first, fails=fails, saved=[], should_stop=False)
        self.strategy = SimpleNamespace(broadcast=lambda value: value)

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)
        if self.is_global_zero:
            path.write_text("half")
            if self.fails:
                raise OSError("disk full")


def save(run_dir: Path, trainer: Any, *steps: int, keep: int = 2) -> None:
    checkpoints = StepCheckpoints(CheckpointConfig(keep=keep), run_dir, steps=100)
    for step in steps:
        checkpoints.save(trainer, step)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_newest_are_kept_by_their_steps(tmp_path: Path) -> None:
    save(tmp_path, Trainer(), 999_998, 999_999, 1_000_000)  # by name the last would come first
    assert names(tmp_path) == ["step-1000000.ckpt", "step-999999.ckpt"]
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1_000_000)


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    save(tmp_path, Trainer(), 1)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, Trainer(fails=True), 2)
    assert names(tmp_path) == ["step-000001.ckpt"]


def test_other_processes_take_part_in_saving_and_touch_no_file(tmp_path: Path) -> None:
    save(tmp_path, Trainer(), 1, 2)
    other = Trainer(first=False)
    save(tmp_path, other, 3, keep=1)
    assert len(other.saved) == 1
    assert names(tmp_path) == ["step-000001.ckpt", "step-000002.ckpt"]


def test_checkpoints_beyond_a_step_are_dropped(tmp_path: Path) -> None:
    save(tmp_path, Trainer(), 1, 2, 3, keep=9)
    drop_checkpoints_after(tmp_path, 2)
    assert names(tmp_path) == ["step-000001.ckpt", "step-000002.ckpt"]
    drop_checkpoints_after(tmp_path, 0)
    assert names(tmp_path) == [] and newest_checkpoint(tmp_path) is None
    drop_checkpoints_after(tmp_path / "no such folder", 0)


@pytest.mark.parametrize(
    ("every", "steps", "saved"), [(0, 5, [5]), (2, 5, [2, 4, 5]), (1, 2, [1, 2])], ids=["last", "every second", "each"]
)
def test_saved_when_due_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, steps: int, saved: list[int]
) -> None:
    from grace_exp.training import checkpoints

    monkeypatch.setattr(checkpoints, "step_module", lambda module: module)
    callback = StepCheckpoints(CheckpointConfig(every_n_steps=every, keep=9), tmp_path, steps)
    trainer = Trainer()
    trainer.should_stop = False
    for completed in range(1, steps + 1):
        callback.on_train_batch_end(trainer, SimpleNamespace(completed_steps=completed))
    assert names(tmp_path) == [f"step-{step:06d}.ckpt" for step in saved]


OVERLAP, HELDOUT = "embed/augmentation_overlap", "val/stsb/rationale"


@pytest.mark.parametrize(
    ("monitor", "mode", "figures", "best"),
    [
        (OVERLAP, None, [0.5, 0.7, 0.4, 0.4], 3),
        (HELDOUT, None, [None, 30.0, None, 20.0], 2),
        (HELDOUT, "min", [30.0, 20.0, None, 20.0], 2),
        (OVERLAP, None, [float("nan"), 0.9, float("nan"), 1.0], 2),
    ],
)
def test_the_best_step_is_kept_too(tmp_path, monkeypatch, monitor, mode, figures, best) -> None:
    from grace_exp.training import checkpoints

    class Saves(Trainer):
        def save_checkpoint(self, path: Path) -> None:
            path.write_text(str(len(self.saved)))

    monkeypatch.setattr(checkpoints, "step_module", lambda module: module)
    config = CheckpointConfig(every_n_steps=0, monitor=monitor, mode=mode)
    callback = StepCheckpoints(config, tmp_path, steps=100)
    trainer = Saves()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_text("of another run")
    callback.on_train_start(trainer, None)
    for completed, figure in enumerate(figures, start=1):
        trainer.saved = [None] * completed
        history = [{} if figure is None else {monitor: figure}]
        callback.on_train_batch_end(trainer, SimpleNamespace(completed_steps=completed, history=history))
        if completed == 2:  # interrupted, and resumed
            state = callback.state_dict()
            callback = StepCheckpoints(config, tmp_path, steps=100)
            callback.load_state_dict(state)
            callback.on_train_start(trainer, None)
    assert (tmp_path / "checkpoints" / "best.ckpt").read_text() == str(best)
    assert newest_checkpoint(tmp_path) is None  # it is no place to go on from by itself


def test_another_figure_is_compared_anew(tmp_path: Path) -> None:
    first = StepCheckpoints(CheckpointConfig(monitor=OVERLAP), tmp_path, steps=1)
    other = StepCheckpoints(CheckpointConfig(monitor=HELDOUT), tmp_path, steps=1)
    other.load_state_dict(first.state_dict() | {"best": 0.1})
    assert other.state_dict()["best"] is None
