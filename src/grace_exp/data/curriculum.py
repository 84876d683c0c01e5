"""Draw instances more often if their rationales fail to find them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grace_exp.data.schedule import SourceShare, turns
from grace_exp.data.text_keys import Keys

_DOMAIN = int.from_bytes(b"difficulty")
"""Separates these draws from others that derive from the same seed."""
UNSEEN = 1.0
"""Difficulty of an instance that no step has held: the highest, so that every instance is drawn at some time."""
_SPARE = 64
"""How many instances beyond those of a step are searched first for one without a shared text."""


class Difficulties:
    """The share of each instance's rationales that fail to find it, 0 to 1.

    An instance's first value is taken as it is. Each further value is averaged with the stored one, because the policy
    learns and old values say little.
    """

    def __init__(self, instances: int) -> None:
        """Start with no instance seen."""
        self._values: NDArray[np.float32] = np.full(instances, np.nan, dtype=np.float32)

    def note(self, found: Mapping[int, float]) -> None:
        """Add the values of a step, by instance."""
        indices, missed = np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.float32)
        before = self._values[indices]
        self._values[indices] = np.where(np.isnan(before), missed, (before + missed) / 2)

    def of(self, instances: slice | Sequence[int]) -> NDArray[np.float32]:
        """Return the difficulties of these instances, `UNSEEN` if there is none yet."""
        values = self._values[instances]
        return np.where(np.isnan(values), np.float32(UNSEEN), values)

    def metrics(self) -> dict[str, float]:
        """Return the share of instances that were seen, and their mean difficulty."""
        seen = self._values[~np.isnan(self._values)]
        return {
            "curriculum/seen_share": len(seen) / len(self._values),
            "curriculum/difficulty": float(seen.mean(dtype=np.float64)) if len(seen) else UNSEEN,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the difficulties of the instances seen, for a checkpoint."""
        seen = np.flatnonzero(~np.isnan(self._values))
        return {"instances": torch.from_numpy(seen), "difficulty": torch.from_numpy(self._values[seen])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._values[:] = np.nan
        self._values[state["instances"].numpy()] = state["difficulty"].numpy()


class CurriculumSchedule:
    """Instance indices by step, drawn by the difficulties that earlier steps have found.

    The sources take turns as in `Schedule`. Within a source a step draws without replacement; an instance's chance is
    proportional to floor + (1 - floor) x difficulty among the remaining ones (Efraimidis & Spirakis, Information
    Processing Letters 97, 2006). An instance that shares a text with an instance of the step is skipped if there are
    others. There are no epochs.

    Step 0 is always drawn as if no instance had been seen. A later step is drawn from the present difficulties, so it
    is available only after the step before it.

    Attributes:
        difficulties: The difficulties so far; a checkpoint keeps them.
    """

    def __init__(
        self,
        sources: Sequence[SourceShare],
        *,
        seed: int,
        batch_size: int,
        steps: int,
        floor: float,
        by_source: bool = False,
        texts: Keys | None = None,
    ) -> None:
        """Make a schedule; `floor` is the weight of an instance that is always found, relative to one that never is.

        Raises:
            DataError: A step takes more instances of a source than it has.
        """
        self._owners = turns(sources, batch_size, steps, by_source=by_source)
        self._ends = np.cumsum([source.rows for source in sources])
        self._sources = sources
        self._seed = seed
        self._floor = floor
        self._texts = texts
        self.difficulties = Difficulties(int(self._ends[-1]))

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._owners)

    def __getitem__(self, step: int) -> list[int]:
        """Return the `batch_size` instance indices of a step, counted from 0, under the present difficulties.

        Raises:
            IndexError: The schedule ends before this step.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a schedule of {len(self)}")
        known = self.difficulties if step else Difficulties(int(self._ends[-1]))
        drawn: list[int] = [0] * self._owners.shape[1]
        held: set[int] = set()
        for number, source in enumerate(self._sources):
            places = np.flatnonzero(self._owners[step] == number).tolist()
            if places:
                first = int(self._ends[number]) - source.rows
                weights = self._floor + (1 - self._floor) * known.of(slice(first, first + source.rows))
                order = _exponential(source.rows, (self._seed, number, step)) / weights
                for place, row in zip(places, self._apart(order, first, len(places), held), strict=True):
                    drawn[place] = first + row
        return drawn

    def _apart(self, order: NDArray[np.float64], first: int, count: int, held: set[int]) -> list[int]:
        """Return the `count` rows of lowest order that share no text with each other or with `held`, which is extended.

        If there are fewer, rows that share a text follow.
        """
        if self._texts is None:
            return _least(order, count)
        for size in (count + _SPARE, len(order)):
            taken: list[int] = []
            passed: list[int] = []
            texts = set(held)
            for row in _least(order, size):
                own = set(self._texts[first + row].tolist()) - {0}
                if own & texts:
                    passed.append(row)
                    continue
                taken.append(row)
                texts |= own
                if len(taken) == count:
                    break
            if len(taken) == count or size >= len(order):
                break
        rows = [*taken, *passed[: count - len(taken)]]
        held |= set(self._texts[[first + row for row in rows]].ravel().tolist()) - {0}
        return rows


def _least(values: NDArray[np.float64], count: int) -> list[int]:
    """Return the positions of the `count` smallest values, in ascending order."""
    if count >= len(values):
        return [int(row) for row in np.argsort(values, kind="stable")]
    rows = np.sort(np.argpartition(values, count)[:count])
    return [int(row) for row in rows[np.argsort(values[rows], kind="stable")]]


def _exponential(rows: int, key: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return draws of the unit exponential distribution, [rows]."""
    # Raw bits, for the reason given in schedule.py.
    seed, number, step = key
    bits = np.random.PCG64(np.random.SeedSequence([_DOMAIN, seed], spawn_key=(number, step))).random_raw(rows)
    uniform: NDArray[np.float64] = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(uniform)
