"""What studies share: figures over several runs, with intervals over runs and items."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grace_exp.evaluation.scores import ItemScores, Score

RESAMPLES = 2000


def over_seeds(runs: Sequence[ItemScores], less: Sequence[ItemScores] = ()) -> Score:
    """Mean figure of several runs on the same items, with a bootstrap interval over runs and items.

    Args:
        runs: The item scores of each seed.
        less: Subtract the mean figure of these runs, seed by seed and item by item resampled together; or of a single
            run, such as the untrained model's.
    """
    generator = np.random.default_rng(0)
    items = len(runs[0].values)

    def figure(seeds: NDArray[np.int64], chosen: NDArray[np.int64] | None) -> float:
        mean = np.mean([runs[seed].figure(chosen) for seed in seeds])
        if less:
            mean -= np.mean([less[seed % len(less)].figure(chosen) for seed in seeds])
        return float(mean)

    drawn = [
        figure(generator.integers(len(runs), size=len(runs)), generator.integers(items, size=items))
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Score(figure(np.arange(len(runs)), None), float(low), float(high))
