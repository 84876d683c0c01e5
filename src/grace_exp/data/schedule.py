"""Which instances each step is fed: fixed by the seed, the sizes and weights of the sources, and the batch size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_exp.errors import DataError

_DOMAIN = int.from_bytes(b"data")
"""Keeps these draws apart from others that derive from the same seed."""


@dataclass(frozen=True)
class SourceShare:
    """What the schedule needs to know of a source."""

    name: str
    rows: int
    weight: float


class Schedule:
    """Instance indices by step; a longer schedule begins with the shorter one.

    The sources' draws are interleaved evenly: the m-th draw of a source of weight w has its turn at (m + 1/2) / w, so
    at any time each source is close to its share. A source is gone through in an order of its own every epoch, none of
    its instances coming again before all have come. Where one step holds the end of an epoch and the beginning of the
    next, the instances it already holds are moved back in the new epoch, for an instance that meets itself in a batch
    would be its own hard negative.
    """

    def __init__(self, sources: Sequence[SourceShare], *, seed: int, batch_size: int, steps: int) -> None:
        """Draws everything up front: 8 bytes an instance.

        Raises:
            DataError: A step takes more instances of a source than it has.
        """
        owner = _interleave([source.weight for source in sources], batch_size * steps)
        flat = np.empty(batch_size * steps, dtype=np.int64)
        offset = 0
        for number, source in enumerate(sources):
            draws = np.flatnonzero(owner == number)
            most = int(np.bincount(draws // batch_size).max(initial=0))
            if most > source.rows:
                raise DataError(
                    f"data.sources.{source.name} has {source.rows} usable rows, but a step of job.batch_size="
                    f"{batch_size} takes {most} different ones: lower job.batch_size or the source's weight, or give "
                    "more rows"
                )
            flat[draws] = offset + _epochs(source.rows, draws // batch_size, (seed, number))
            offset += source.rows
        self._steps = flat.reshape(steps, batch_size)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._steps)

    def __getitem__(self, step: int) -> list[int]:
        """The `batch_size` instance indices of a step, counted from 0.

        Raises:
            IndexError: The schedule ends before this step.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a schedule of {len(self)}")
        return [int(index) for index in self._steps[step]]


def _interleave(weights: Sequence[float], draws: int) -> NDArray[np.int64]:
    """The source of every draw, `[draws]`."""
    shares = np.array(weights) / np.sum(weights)
    counts = np.ceil(draws * shares).astype(np.int64) + len(weights)
    turns = np.concatenate([(np.arange(count) + 0.5) / share for count, share in zip(counts, shares, strict=True)])
    return np.repeat(np.arange(len(weights)), counts)[np.argsort(turns, kind="stable")[:draws]]


def _epochs(rows: int, steps: NDArray[np.int64], key: tuple[int, int]) -> NDArray[np.int64]:
    """The rows of one source in the order of its draws, `[draws]`; `steps` is the (ascending) step of each draw."""
    order = np.empty(len(steps), dtype=np.int64)
    for epoch, start in enumerate(range(0, len(steps), rows)):
        permutation = _permutation(rows, (*key, epoch))
        first, last = np.searchsorted(steps, steps[start], "left"), np.searchsorted(steps, steps[start], "right")
        if first < start:
            head = permutation[~np.isin(permutation, order[first:start])][: last - start]
            permutation = np.concatenate([head, permutation[~np.isin(permutation, head)]])
        order[start : start + rows] = permutation[: len(steps) - start]
    return order


def _permutation(rows: int, key: tuple[int, int, int]) -> NDArray[np.int64]:
    # Raw bits, because numpy keeps the streams of its bit generators across versions but not Generator.permutation's.
    seed, number, epoch = key
    bits = np.random.PCG64(np.random.SeedSequence([_DOMAIN, seed], spawn_key=(number, epoch))).random_raw(rows)
    return np.argsort(bits, kind="stable")
