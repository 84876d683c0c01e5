import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.data.batch import TextBatch
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.recipes import Recipe, load_recipe
from grace_exp.errors import ConfigError

STEPS = 6
BATCH = 4


def make_recipe(folder: Path, *, rows: int = 10, seed: int = 0) -> Recipe:
    path = folder / f"{rows}.jsonl"
    texts = [{"query": f"q{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    data = DataConfig(name="d", mode="supervised", sources={"s": SourceConfig(path=str(path))})
    return load_recipe(data, seed=seed, cache_dir=folder / "cache", rejects_path=None)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(tmp_path)


class Recorder(pl.LightningModule):
    """Trains a line by hand and notes which steps it is given; stops before `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.line = torch.nn.Linear(1, 1)
        self.fail_at = fail_at
        self.visited: list[tuple[int, int]] = []
        self.indices: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: TextBatch, batch_idx: int) -> None:
        if batch.step == self.fail_at:
            raise RuntimeError("interrupted")
        assert isinstance(batch, TextBatch)
        for _ in range(2):  # optimizer steps are not GRACE steps
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.line(torch.ones(1, 1, dtype=self.line.weight.dtype)).sum())
            optimizer.step()
        self.visited.append((batch_idx, batch.step))
        self.indices.append([instance.index for instance in batch.instances])
        self.trainer.datamodule.completed(batch.step)


class SaveEveryStep(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt")


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    resume: Path | None = None,
    fail_at: int | None = None,
    precision: Any = "32-true",
    callbacks: list[pl.Callback] | None = None,
) -> tuple[Recorder, pl.Trainer]:
    """Trains with every warning that speaks of data loading as an error."""
    module = Recorder(fail_at)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        callbacks=callbacks or [],
        logger=False,
        enable_checkpointing=bool(callbacks) and any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = GraceDataModule(recipe, batch_size=batch_size, steps=steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?i).*(dataloader|resum)")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume)
        except RuntimeError as error:
            assert str(error) == "interrupted"
    return module, trainer


@pytest.fixture
def checkpoints(recipe: Recipe, tmp_path: Path) -> Path:
    """Of every step of an uninterrupted run: 1.ckpt to 6.ckpt."""
    fit(recipe, tmp_path, callbacks=[SaveEveryStep(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_step_comes_once_in_every_precision(recipe: Recipe, tmp_path: Path, precision: str) -> None:
    module, trainer = fit(recipe, tmp_path, precision=precision)
    schedule = recipe.schedule(BATCH, STEPS)
    assert module.visited == [(step, step) for step in range(STEPS)]
    assert module.indices == [schedule[step] for step in range(STEPS)]
    assert trainer.global_step == 2 * STEPS


@pytest.mark.parametrize("done", range(1, STEPS + 1))
def test_a_resumed_run_visits_exactly_the_remaining_steps(
    recipe: Recipe, tmp_path: Path, checkpoints: Path, done: int
) -> None:
    module, trainer = fit(recipe, tmp_path, resume=checkpoints / f"{done}.ckpt")
    assert module.visited == [(step, step) for step in range(done, STEPS)]
    schedule = recipe.schedule(BATCH, STEPS)
    assert module.indices == [schedule[step] for step in range(done, STEPS)]
    assert trainer.global_step == 2 * STEPS


def test_an_interrupted_run_goes_on_from_its_last_checkpoint_as_often_as_it_takes(
    recipe: Recipe, tmp_path: Path
) -> None:
    visited = []
    resume = None
    for fail_at in (2, 3, 5, None):
        saver = pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=2, save_last=True)
        module, _ = fit(recipe, tmp_path, resume=resume, fail_at=fail_at, callbacks=[saver])
        visited += module.visited
        resume = tmp_path / "ckpt" / "last.ckpt"
    assert visited == [(step, step) for step in range(STEPS)]


def test_a_checkpoint_of_a_finished_run_leaves_nothing_to_do(recipe: Recipe, tmp_path: Path) -> None:
    _, trainer = fit(recipe, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module, _ = fit(recipe, tmp_path, resume=tmp_path / "end.ckpt")
    assert module.visited == []


def test_an_unfinished_run_can_be_given_more_steps(recipe: Recipe, tmp_path: Path, checkpoints: Path) -> None:
    module, _ = fit(recipe, tmp_path, steps=STEPS + 3, resume=checkpoints / "4.ckpt")
    assert module.visited == [(step, step) for step in range(4, STEPS + 3)]


def test_a_checkpoint_is_refused_by_other_data(recipe: Recipe, tmp_path: Path, checkpoints: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps would differ: job\.batch_size was 4 and is 2\. Resume with"):
        fit(recipe, tmp_path, batch_size=2, resume=checkpoints / "2.ckpt")
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        fit(make_recipe(tmp_path, seed=1), tmp_path, resume=checkpoints / "2.ckpt")
    with pytest.raises(ConfigError, match=f"data fingerprint was {recipe.fingerprint} and is"):
        fit(make_recipe(tmp_path, rows=11), tmp_path, resume=checkpoints / "2.ckpt")


def test_the_state_is_the_number_of_completed_steps(recipe: Recipe) -> None:
    data = GraceDataModule(recipe, batch_size=BATCH, steps=STEPS)
    assert data.state_dict()["step"] == 0
    data.completed(2)
    assert data.state_dict()["step"] == 3
    other = GraceDataModule(recipe, batch_size=BATCH, steps=STEPS)
    other.load_state_dict(data.state_dict())
    assert list(other.train_dataloader()) == [3, 4, 5]
    assert len(other.train_dataloader()) == STEPS


def test_a_batch_holds_the_scheduled_instances(recipe: Recipe) -> None:
    data = GraceDataModule(recipe, batch_size=BATCH, steps=STEPS)
    batch = data.batch(3)
    assert batch.step == 3
    assert list(batch.instances) == [recipe[index] for index in recipe.schedule(BATCH, STEPS)[3]]


def test_processes_share_a_step_in_contiguous_equal_parts(recipe: Recipe) -> None:
    data = GraceDataModule(recipe, batch_size=BATCH, steps=STEPS)
    whole = list(data.batch(5).instances)
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append(list(data.batch(5).instances))
    assert [len(share) for share in shares] == [2, 2]
    assert shares[0] + shares[1] == whole
    data.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"objective\.mini_batch_size=4 is not a multiple of the 3 processes"):
        data.batch(5)


def test_an_update_sees_the_same_instances_however_many_processes_share_it(recipe: Recipe) -> None:
    data = GraceDataModule(recipe, batch_size=4, mini_batch_size=2, steps=STEPS)
    alone = [instance.index for instance in data.batch(5).instances]
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append([instance.index for instance in data.batch(5).instances])
    for update in range(2):
        assert [share[update] for share in shares] == alone[2 * update : 2 * update + 2]
