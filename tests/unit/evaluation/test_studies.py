"""Figures of several runs with intervals, as the studies in experiments/ state them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from grace_exp.evaluation.scores import ItemScores


@pytest.fixture(scope="module")
def common() -> ModuleType:
    path = Path(__file__).parents[3] / "experiments" / "common.py"
    spec = importlib.util.spec_from_file_location("experiments_common", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(seed: int, shift: float = 0.0) -> list[ItemScores]:
    """Two tasks of 40 and 60 items."""
    draw = np.random.default_rng(0)
    noise = np.random.default_rng(seed).normal(scale=0.01)
    return [ItemScores(draw.uniform(size=size) + noise + shift, None) for size in (40, 60)]


def test_the_figure_is_the_mean_over_runs_and_tasks(common: ModuleType) -> None:
    runs = [run(seed) for seed in (1, 2, 3)]
    found = common.over_seeds([common.resampled(some) for some in runs])
    assert found.value == pytest.approx(np.mean([task.figure() for some in runs for task in some]))
    assert found.low < found.value < found.high


def test_differences_are_taken_on_the_same_items(common: ModuleType) -> None:
    better, worse = ([common.resampled(run(seed, shift)) for seed in (1, 2, 3)] for shift in (0.1, 0.0))
    found = common.over_seeds(better, worse)
    assert (found.value, found.low, found.high) == pytest.approx((10, 10, 10))


def test_one_untrained_run_is_compared_with_every_seed(common: ModuleType) -> None:
    trained = [common.resampled(run(0, shift)) for shift in (0.1, 0.2, 0.3)]
    found = common.over_seeds(trained, [common.resampled(run(0))])
    assert found.value == pytest.approx(20)
    assert 10 - 1e-6 <= found.low < 20 < found.high <= 30 + 1e-6  # the seeds scatter, the items do not
    reverse = common.over_seeds([common.resampled(run(0))], trained)
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-found.value, -found.high, -found.low))
