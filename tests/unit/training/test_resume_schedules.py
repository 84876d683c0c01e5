"""A run that is interrupted anywhere and any number of times keeps its learning rates, data and weights."""

from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_exp.config.callbacks import CheckpointConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.data import DataConfig, SourceConfig
from grace_exp.config.root import GraceConfig
from grace_exp.data.batch import TextBatch
from grace_exp.data.datamodule import GraceDataModule
from grace_exp.data.recipes import Recipe, load_recipe
from grace_exp.errors import ConfigError
from grace_exp.training.checkpoints import StepCheckpoints, checkpoint_path
from grace_exp.training.module import Backward, StepModule
from grace_exp.training.resume import check_same_run
from grace_exp.training.trainer import build_trainer

Visited = list[tuple[int, list[int], list[float]]]


class Line(StepModule):
    """The run's own steps, updates, schedules and checkpoints, with a line for a policy.

    Attributes:
        visited: (step, its instances, the learning rates of its updates).
    """

    def __init__(self, config: GraceConfig, nonfinite: frozenset[int] = frozenset()) -> None:
        torch.manual_seed(0)
        line = torch.nn.Linear(3, 1)
        policy: Any = torch.nn.Module()
        policy.model = line
        policy.trainable_parameters = lambda: list(line.parameters())
        policy.sharded = False
        engine: Any = SimpleNamespace(sync=lambda model: None)
        super().__init__(config, policy=policy, engine=engine, prompts=None)  # type: ignore[arg-type]
        self.nonfinite = nonfinite
        self.visited: Visited = []

    def step(self, batch: TextBatch) -> dict[str, float]:
        rates = []
        for start, instances in self.mini_batches(batch.instances):
            rows = torch.tensor([[one.index, one.index % 5, batch.step] for one in instances], dtype=torch.float32)

            def accumulate(backward: Backward, rows: torch.Tensor = rows) -> torch.Tensor:
                loss = self.policy.model(rows).square().mean()
                loss = loss * float("nan") if batch.step in self.nonfinite else loss
                backward(loss, True)
                return loss.detach()

            rates.append(self.update(batch.step, start, dict, accumulate)["learning_rate"])
        self.visited.append((batch.step, [one.index for one in batch.instances], rates))
        return {}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> GraceConfig:
    folder = tmp_path_factory.mktemp("run")
    overrides = ["+experiment=demo_tiny", "job.batch_size=4", "objective.mini_batch_size=2", "optim.on_nonfinite=skip"]
    return compose_config(overrides, folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "rows.txt").write_text("".join(f"text {n}\n" for n in range(11)))
    data = DataConfig(name="d", mode="unsupervised", sources={"s": SourceConfig(path=str(folder / "rows.txt"))})
    return load_recipe(data, seed=1, cache_dir=folder / "cache", rejects_path=None)


def fit(config: GraceConfig, recipe: Recipe, until: int, resume: Path | None, nonfinite: frozenset[int]) -> Line:
    """The steps up to `until`, with a checkpoint behind the last of them."""
    from lightning.pytorch import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            trainer.should_stop = module.completed_steps == until

    module, run_dir = Line(config, nonfinite), Path(config.run_dir)
    checkpoints = StepCheckpoints(CheckpointConfig(every_n_steps=1000), run_dir, config.job.steps)
    trainer = build_trainer(config.hardware, steps=config.job.steps, loggers=[], callbacks=[Stop(), checkpoints])
    data = GraceDataModule(recipe, batch_size=4, mini_batch_size=2, steps=config.job.steps)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


def settings_of(config: GraceConfig, **changes: Any) -> GraceConfig:
    steps, run_dir = changes.pop("steps"), mkdtemp(dir=Path(config.run_dir).parent)
    return replace(
        config, run_dir=run_dir, optim=replace(config.optim, **changes), job=replace(config.job, steps=steps)
    )


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    steps=st.integers(1, 6),
    warmup=st.integers(0, 12),
    rate=st.sampled_from([1e-6, 0.01, 1.0]),
    cuts=st.sets(st.integers(1, 5), max_size=3),
    nonfinite=st.frozensets(st.integers(0, 5), max_size=2),
)
@settings(max_examples=12, deadline=None)
def test_a_run_cut_anywhere_has_the_rates_data_and_weights_of_one_that_was_not(
    config, recipe, schedule, steps, warmup, rate, cuts, nonfinite
) -> None:
    warmup = min(warmup, 2 * steps)  # two updates a step; more are refused
    run = settings_of(config, steps=steps, schedule=schedule, warmup_steps=warmup, learning_rate=rate)
    whole = fit(run, recipe, steps, None, nonfinite)
    expected = torch.load(checkpoint_path(Path(run.run_dir), steps), weights_only=True)
    visited: Visited = []
    resume = None
    for until in [*sorted(cut for cut in cuts if cut < steps), steps]:
        visited += fit(run, recipe, until, resume, nonfinite).visited
        resume = checkpoint_path(Path(run.run_dir), until)
    assert visited == whole.visited
    assert resume is not None
    found = torch.load(resume, weights_only=True)
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)


@given(
    steps=st.integers(1, 4), more=st.integers(1, 3), warmup=st.integers(0, 8), rate=st.sampled_from([1e-6, 0.01, 1.0])
)
@settings(max_examples=6, deadline=None)
def test_more_steps_for_a_run_that_had_ended_are_those_of_a_longer_run(
    config, recipe, steps, more, warmup, rate
) -> None:
    short, longer = (
        settings_of(config, steps=count, schedule="constant", warmup_steps=min(warmup, 2 * steps), learning_rate=rate)
        for count in (steps, steps + more)
    )
    whole = fit(longer, recipe, steps + more, None, frozenset())
    begun = fit(short, recipe, steps, None, frozenset())
    added = fit(longer, recipe, steps + more, checkpoint_path(Path(short.run_dir), steps), frozenset())
    assert begun.visited + added.visited == whole.visited


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    steps=st.integers(1, 50),
    warmup=st.integers(0, 100),
    update=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_the_rate_of_an_update_has_a_closed_form(config, schedule, steps, warmup, update) -> None:
    updates, warmup = 2 * steps, min(warmup, 2 * steps)
    run = settings_of(config, steps=steps, schedule=schedule, warmup_steps=warmup, learning_rate=0.5)
    scheduler = Line(run).configure_optimizers()["lr_scheduler"]["scheduler"]
    update = min(update, updates - 1)
    for _ in range(update):
        scheduler.optimizer.step()
        scheduler.step()
    left = torch.tensor((update - warmup) / max(1, updates - warmup), dtype=torch.float64)
    after = {"constant": 1.0, "linear": 1 - left.item(), "cosine": (0.5 * (1 + torch.cos(torch.pi * left))).item()}
    factor = update / warmup if update < warmup else after[schedule]
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * factor, rel=1e-9, abs=1e-12)


@given(schedule=st.sampled_from(["linear", "cosine"]), steps=st.integers(1, 20), other=st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_a_schedule_that_ends_with_the_steps_is_not_gone_on_with_under_others(config, schedule, steps, other) -> None:
    from dataclasses import asdict

    saved = asdict(settings_of(config, steps=steps, schedule=schedule, warmup_steps=0))
    now = settings_of(config, steps=other, schedule=schedule, warmup_steps=0)
    if steps == other:
        check_same_run(saved, now)
        return
    with pytest.raises(ConfigError, match=r"optim\.schedule depends on it"):
        check_same_run(saved, now)
