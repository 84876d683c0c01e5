"""Scores of a held-out set with bootstrap intervals."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from grace_exp.evaluation.heldout_sets import HeldoutSet

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """A score in points (x 100) with its 95 % percentile bootstrap interval over the set's items."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Return text such as `57.1 [45.0, 66.9]`."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f}{interval}"

    def as_dict(self) -> dict[str, float | None]:
        """Return the values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ItemScores:
    """The values of each item from which a set's score is computed and resampled.

    Attributes:
        values: Cosine of each pair (STS, pair classification), nDCG@10 of each query (retrieval), or another score of
            each item whose mean is the set's score, [items].
        human: For pairs: human scores (STS), or whether they match (bool, pair classification); otherwise None.
    """

    values: NDArray[np.float64]
    human: NDArray[np.float64] | NDArray[np.bool_] | None

    def figure(self, items: NDArray[np.int64] | None = None) -> float:
        """Return the score over the chosen items, x 100: Spearman (STS), average precision (pairs), or the mean."""
        values = self.values if items is None else self.values[items]
        if self.human is None:
            return 100 * float(values.mean())
        human = self.human if items is None else self.human[items]
        if human.dtype == bool:
            from sklearn.metrics import average_precision_score

            return 100 * float(average_precision_score(human, values)) if human.any() else float("nan")
        from scipy.stats import spearmanr

        return 100 * float(spearmanr(values, human).statistic)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON, with the score."""
        human = None if self.human is None else self.human.tolist()
        return {"figure": self.figure(), "values": self.values.tolist(), "human": human}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Make the object from what `as_dict` returned."""
        return cls(np.array(record["values"]), None if record["human"] is None else np.array(record["human"]))


def item_scores(first: Vectors, second: Vectors, heldout: HeldoutSet) -> ItemScores:
    """Return the item scores for the embeddings [items, hidden] of both columns."""
    left, right = _unit(first), _unit(second)
    if heldout.scores is not None:
        return ItemScores((left * right).sum(axis=1), heldout.scores)
    similarity = (left @ right.T).round(12)  # the last bits of products of equal vectors depend on the machine
    own_similarity = similarity.diagonal()[:, None]
    # Ties count against the query, so that equal embeddings get the worst score and not the best.
    rank = (similarity >= own_similarity).sum(axis=1)
    return ItemScores(np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0), None)


def score(items: ItemScores, resamples: int) -> Score:
    """Return the score of a set."""
    return Score(items.figure(), *_interval(items.figure, len(items.values), resamples))


def rise(before: ItemScores, after: ItemScores, resamples: int) -> Score:
    """Return the difference of two scores on the same items, resampled together."""

    def difference(chosen: NDArray[np.int64] | None = None) -> float:
        return after.figure(chosen) - before.figure(chosen)

    return Score(difference(), *_interval(difference, len(before.values), resamples))


def _interval(
    figure: Callable[[NDArray[np.int64]], float], items: int, resamples: int
) -> tuple[float, float] | tuple[None, None]:
    if resamples == 0:
        return None, None
    generator = np.random.default_rng(0)
    drawn = [figure(generator.integers(items, size=items)) for _ in range(resamples)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
