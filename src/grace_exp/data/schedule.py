"""Which instances each step gets: it follows from the seed, the sources' sizes and weights, and the batch size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_exp.data.text_keys import Keys
from grace_exp.errors import DataError

_DOMAIN = int.from_bytes(b"data")
"""Separates these draws from others that derive from the same seed."""
_LOOKAHEAD = 32
"""How many steps ahead an instance to exchange with is searched."""


@dataclass(frozen=True)
class SourceShare:
    """What the schedule needs to know about a source."""

    name: str
    rows: int
    weight: float


class Schedule:
    """Instance indices by step; a longer schedule begins with the shorter one.

    The draws of the sources are interleaved evenly: the m-th draw of a source of weight w has its turn at (m + 1/2) /
    w, so at any time each source is close to its share. In every epoch a source has a new order, and each of its
    instances is drawn once. A step may hold the end of an epoch and the beginning of the next. The instances that it
    already holds are then moved back in the new epoch, because an instance that occurs twice in a batch would be its
    own hard negative.
    """

    def __init__(
        self,
        sources: Sequence[SourceShare],
        *,
        seed: int,
        batch_size: int,
        steps: int,
        by_source: bool = False,
        texts: Keys | None = None,
    ) -> None:
        """Draw everything in advance: 8 bytes an instance.

        Args:
            sources: The sources, in the recipe's order.
            seed: Seed of the run.
            batch_size: Instances per step.
            steps: Number of steps of the run.
            by_source: Whether each step has instances of one source only; the steps are divided by weight.
            texts: Digests of every instance's texts, [instances, texts], 0 for none. Instances of a step that share a
                text are then exchanged with later ones (see `_apart`). None: they are not.

        Raises:
            DataError: A step takes more instances from a source than it has.
        """
        drawn = steps if texts is None else steps + _LOOKAHEAD  # the last steps may exchange instances with these
        owners = turns(sources, batch_size, drawn, by_source=by_source)
        owner = owners.ravel()
        flat = np.empty(batch_size * drawn, dtype=np.int64)
        offset = 0
        for number, source in enumerate(sources):
            draws = np.flatnonzero(owner == number)
            flat[draws] = offset + _epochs(source.rows, draws // batch_size, (seed, number))
            offset += source.rows
        by_step = flat.reshape(drawn, batch_size)
        if texts is not None:
            _apart(by_step, owners, texts, steps)
        self._steps = by_step[:steps]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def __getitem__(self, step: int) -> list[int]:
        """Return the `batch_size` instance indices of a step, counted from 0.

        Raises:
            IndexError: The schedule ends before this step.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a schedule of {len(self)}")
        return [int(index) for index in self._steps[step]]


def turns(sources: Sequence[SourceShare], batch_size: int, steps: int, *, by_source: bool) -> NDArray[np.int64]:
    """Return the number of the source for each place of each step, [steps, batch].

    Args:
        sources: The sources, in the recipe's order.
        batch_size: Instances per step.
        steps: Number of steps.
        by_source: As in `Schedule`.

    Raises:
        DataError: A step takes more instances from a source than it has.
    """
    weights = [source.weight for source in sources]
    owner = _interleave(weights, steps if by_source else batch_size * steps)
    owner = np.repeat(owner, batch_size) if by_source else owner
    for number, source in enumerate(sources):
        most = int(np.bincount(np.flatnonzero(owner == number) // batch_size).max(initial=0))
        if most > source.rows:
            raise DataError(
                f"data.sources.{source.name} has {source.rows} usable rows, but a step of job.batch_size={batch_size} "
                f"takes {most} different ones: lower job.batch_size or the source's weight, or give more rows"
            )
    return owner.reshape(steps, batch_size)


def _apart(by_step: NDArray[np.int64], owner: NDArray[np.int64], texts: Keys, steps: int) -> None:
    """Exchange instances so that no two instances of a step share a text, as far as possible.

    An instance that shares a text with an earlier one of its step is exchanged with the next instance of its source in
    the following steps for which neither shares a text in its new step. If there is none, it stays.

    Args:
        by_step: Instances [steps or more, batch], changed in place.
        owner: Their sources, of the same shape.
        texts: Digests of the instances' texts.
        steps: How many steps are treated.
    """
    for step in range(steps):
        keys = texts[by_step[step]]
        flat = np.sort(keys[keys != 0])
        if not (flat[1:] == flat[:-1]).any():
            continue
        members = [set(row) - {0} for row in keys.tolist()]
        for place in range(1, len(members)):
            if not any(members[place] & earlier for earlier in members[:place]):
                continue
            others = set().union(*members[:place], *members[place + 1 :])
            later = slice(step + 1, step + 1 + _LOOKAHEAD)
            rows, places = np.nonzero(owner[later] == owner[step, place])
            for row, other in zip((rows + step + 1).tolist(), places.tolist(), strict=True):
                candidate = _texts(texts, by_step[row, other : other + 1])
                if not candidate & others and not members[place] & _texts(texts, np.delete(by_step[row], other)):
                    by_step[step, place], by_step[row, other] = by_step[row, other], by_step[step, place]
                    members[place] = candidate
                    break


def _texts(texts: Keys, instances: NDArray[np.int64]) -> set[int]:
    """Return the digests of the texts of instances."""
    return set(texts[instances].ravel().tolist()) - {0}


def _interleave(weights: Sequence[float], draws: int) -> NDArray[np.int64]:
    """Return the source of every draw, `[draws]`."""
    shares = np.array(weights) / np.sum(weights)
    counts = np.ceil(draws * shares).astype(np.int64) + len(weights)
    turns = np.concatenate([(np.arange(count) + 0.5) / share for count, share in zip(counts, shares, strict=True)])
    return np.repeat(np.arange(len(weights)), counts)[np.argsort(turns, kind="stable")[:draws]]


def _epochs(rows: int, steps: NDArray[np.int64], key: tuple[int, int]) -> NDArray[np.int64]:
    """Return the rows of a source in the order of its draws, `[draws]`; `steps` has the (ascending) step of each."""
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
    # Raw bits, because numpy keeps the streams of its bit generators across versions, but not Generator.permutation's.
    seed, number, epoch = key
    bits = np.random.PCG64(np.random.SeedSequence([_DOMAIN, seed], spawn_key=(number, epoch))).random_raw(rows)
    return np.argsort(bits, kind="stable")
