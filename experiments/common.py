"""Shared by the studies: figures over several runs, with intervals over runs and items."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grace_exp.evaluation.scores import ItemScores, Score

RESAMPLES = 1000
Figures = NDArray[np.float64]
"""Of one run, [tasks, 1 + RESAMPLES]: on all items, then on drawn ones; the same draws for every run."""


def resampled(run: Sequence[ItemScores]) -> Figures:
    """Return the figures of a run's tasks, on all items and on RESAMPLES draws of as many items with replacement.

    Args:
        run: Item scores of each task, the same tasks in the same order for all runs that are to be compared.
    """
    rows = []
    for number, task in enumerate(run):
        count = len(task.values)
        draws = np.random.default_rng(number).integers(count, size=(RESAMPLES, count))
        rows.append([task.figure(), *(task.figure(items) for items in draws)])
    return np.array(rows)


def over_seeds(runs: Sequence[Figures], less: Sequence[Figures] = ()) -> Score:
    """Return the mean figure of several runs over tasks, with a 95 % bootstrap interval over runs and items.

    Args:
        runs: Results of `resampled`, one per seed; or a single one, such as the untrained model's.
        less: Runs whose mean figure is subtracted, seed by seed; or a single run.
    """
    count = max(len(runs), len(less))
    figures = np.array([runs[seed % len(runs)].mean(axis=0) for seed in range(count)])
    if less:
        figures = figures - np.array([less[seed % len(less)].mean(axis=0) for seed in range(count)])
    seeds = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    drawn = np.take_along_axis(figures[:, 1:].T, seeds, axis=1).mean(axis=1)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Score(float(figures[:, 0].mean()), float(low), float(high))


def seeds_needed(differences: Sequence[float], points: float) -> str:
    """Seeds with which a paired difference of `points` is found in 4 of 5 studies at 5 %: normal approximation.

    Args:
        differences: Differences of the mean figures, one per seed; with fewer than two the result is ''.
        points: The difference to be found.
    """
    if len(differences) < 2:
        return ""
    return str(max(2, math.ceil(((1.96 + 0.84) * statistics.stdev(differences) / points) ** 2)))
