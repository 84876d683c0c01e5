"""A recipe: sources mixed into one sequence of instances."""

import hashlib
import json
import random
from bisect import bisect_right
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path

from grace_exp.config.data import DataConfig
from grace_exp.data.batch import Instance
from grace_exp.data.rows import RejectLog
from grace_exp.data.schedule import Schedule, SourceShare
from grace_exp.data.sources import LoadedSource, load_source

VERSION = 1
"""Part of the fingerprint: raise it when the same rows and settings give other instances or another schedule."""


class Recipe:
    """The instances of all sources, one source after the other.

    Attributes:
        seed: Of the schedule.
        fingerprint: Of the rows' contents and the settings that decide what is trained on (mode, negatives, weights,
            order of the sources); the same for the same rows in another place, format or file.
    """

    def __init__(self, data: DataConfig, sources: dict[str, LoadedSource], *, seed: int) -> None:
        """Puts loaded sources together; see `load_recipe`."""
        self.seed = seed
        self._sources = sources
        self._names = list(sources)
        self._ends = list(accumulate(len(source.rows) for source in sources.values()))
        self._shares = [
            SourceShare(name, len(source.rows), data.sources[name].weight) for name, source in sources.items()
        ]
        settings = {
            "version": VERSION,
            "mode": data.mode,
            "negatives": data.negatives,
            "sources": [
                {"rows": source.digest, "weight": data.sources[name].weight} for name, source in sources.items()
            ],
        }
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of instances."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Instance:
        """The instance at a position from 0; an unsupervised text is its own positive.

        Raises:
            IndexError: There is no such position.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"instance {index} of a recipe of {len(self)}")
        number = bisect_right(self._ends, index)
        name = self._names[number]
        rows = self._sources[name].rows
        row = rows[index - (self._ends[number] - len(rows))]
        if "text" in row:  # of an unsupervised source
            return Instance(index=index, query=row["text"], positive=row["text"], negatives=(), source=name)
        return Instance(
            index=index,
            query=row["query"],
            positive=row["positive"],
            negatives=tuple(row["negatives"]),
            source=name,
        )

    def another(self, index: int, seed: int, without: Collection[int]) -> Instance | None:
        """An instance drawn from the same source.

        Args:
            index: Of an instance of the source.
            seed: Of the draw.
            without: Indices that are not to be drawn.

        Returns:
            The instance; None where the source has no other.
        """
        number = bisect_right(self._ends, index)
        end = self._ends[number]
        start = end - len(self._sources[self._names[number]].rows)
        if sum(start <= taken < end for taken in without) >= end - start:
            return None
        draws = random.Random(seed)
        while (drawn := start + int(draws.random() * (end - start))) in without:
            pass
        return self[drawn]

    def describe(self) -> dict[str, object]:
        """Rows and rejected rows of every source, and the fingerprint; for the run's records."""
        return {
            "rows": {name: len(source.rows) for name, source in self._sources.items()},
            "rejected": {name: source.rejected for name, source in self._sources.items()},
            "fingerprint": self.fingerprint,
        }

    def schedule(self, batch_size: int, steps: int) -> Schedule:
        """Which instances each step is fed.

        Raises:
            DataError: A source has fewer rows than one step takes of it.
        """
        return Schedule(self._shares, seed=self.seed, batch_size=batch_size, steps=steps)


def load_recipe(data: DataConfig, *, seed: int, cache_dir: Path, rejects_path: Path | None) -> Recipe:
    """Loads all sources of a recipe.

    Args:
        data: The recipe.
        seed: Of the run; the schedule derives from it.
        cache_dir: Holds prepared rows; shared by runs and processes.
        rejects_path: Where rejected rows are listed; None in processes other than the first.

    Raises:
        ConfigError, DataError, MissingResourceError: See `load_source`.
    """
    rejects = RejectLog(rejects_path) if rejects_path is not None else None
    sources = {
        name: load_source(name, source, data.of(name), rejects, cache_dir) for name, source in data.sources.items()
    }
    return Recipe(data, sources, seed=seed)
