"""A recipe: sources mixed into one sequence of instances."""

import hashlib
import json
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from grace_exp.config.data import DataConfig
from grace_exp.data.batch import Instance
from grace_exp.data.cleaning import clean
from grace_exp.data.curriculum import CurriculumSchedule
from grace_exp.data.leaks import HeldoutTexts
from grace_exp.data.rows import RejectLog
from grace_exp.data.schedule import Schedule, SourceShare
from grace_exp.data.sources import LoadedSource, load_source
from grace_exp.data.text_keys import joined, row_texts, source_keys
from grace_exp.data.token_lengths import TokenLengths
from grace_exp.errors import DataError

VERSION = 1
"""Part of the fingerprint; raise it when the same rows and settings give other instances or another schedule."""


class Recipe:
    """The instances of all sources, one source after the other.

    Attributes:
        seed: Seed of the schedule.
        fingerprint: Digest of the rows' contents and of the settings that decide what is trained on (mode, negatives,
            weights, order of the sources). It does not depend on where or in which format the rows are stored.
    """

    def __init__(self, data: DataConfig, sources: dict[str, LoadedSource], *, seed: int) -> None:
        """Combine loaded sources; see `load_recipe`."""
        self.seed = seed
        self._sources = sources
        self._names = list(sources)
        self._ends = list(accumulate(len(source.rows) for source in sources.values()))
        weights = {name: _weight(data, name, source) for name, source in sources.items()}
        self._shares = [SourceShare(name, len(source.rows), weights[name]) for name, source in sources.items()]
        self._by_source, self._distinct = data.batch_by == "source", data.distinct_texts
        self._floor = data.curriculum_floor if data.curriculum == "difficulty" else None
        settings: dict[str, object] = {
            "version": VERSION,
            "mode": data.mode,
            "negatives": data.negatives,
            "sources": [{"rows": source.digest, "weight": weights[name]} for name, source in sources.items()],
        }
        if self._by_source:
            settings["batch_by"] = data.batch_by
        if self._distinct:
            settings["distinct_texts"] = True
        if self._floor is not None:
            settings["curriculum"] = [data.curriculum, self._floor]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of instances."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Instance:
        """Return the instance at a position from 0; an unsupervised text is its own positive.

        Raises:
            IndexError: There is no such position.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"instance {index} of a recipe of {len(self)}")
        number = bisect_right(self._ends, index)
        name = self._names[number]
        rows = self._sources[name].rows
        row = rows[index - (self._ends[number] - len(rows))]
        if "text" in row:  # a row of an unsupervised source
            return Instance(index=index, query=row["text"], positive=row["text"], negatives=(), source=name)
        return Instance(
            index=index,
            query=row["query"],
            positive=row["positive"],
            negatives=tuple(row["negatives"]),
            source=name,
        )

    def another(self, index: int, seed: int, without: Collection[int]) -> Instance | None:
        """Draw another instance from the same source.

        Args:
            index: Index of an instance of the source.
            seed: Seed of the draw.
            without: Indices that must not be drawn.

        Returns:
            The instance; None if the source has no other.
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
        """Return the rows and rejected rows of every source, and the fingerprint, for the run's records."""
        dropped = {name: dict(source.dropped) for name, source in self._sources.items()}
        return {
            "rows": {name: len(source.rows) for name, source in self._sources.items()},
            "rejected": {name: source.rejected for name, source in self._sources.items()},
            **({"dropped": dropped} if any(dropped.values()) else {}),
            "fingerprint": self.fingerprint,
        }

    def schedule(self, batch_size: int, steps: int) -> Schedule | CurriculumSchedule:
        """Return which instances each step gets.

        Raises:
            DataError: A source has fewer rows than one step takes from it.
        """
        texts = (
            joined([source_keys(source, "normalized") for source in self._sources.values()]) if self._distinct else None
        )
        kwargs: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": batch_size,
            "steps": steps,
            "by_source": self._by_source,
            "texts": texts,
        }
        if self._floor is not None:
            return CurriculumSchedule(self._shares, floor=self._floor, **kwargs)
        return Schedule(self._shares, **kwargs)


def _weight(data: DataConfig, name: str, source: LoadedSource) -> float:
    """Return the weight of a source in the mixture."""
    match data.weights:
        case "proportional":
            return float(len(source.rows))
        case "temperature":
            return float(len(source.rows) ** (1 / data.weights_temperature))
        case "given":
            return data.sources[name].weight


def load_sources(data: DataConfig, *, cache_dir: Path, rejects_path: Path | None) -> dict[str, LoadedSource]:
    """Loads all usable rows of a recipe's sources.

    Args:
        data: The recipe.
        cache_dir: Folder of prepared rows; runs and processes share it.
        rejects_path: File in which bad rows are listed; None in processes other than the first.

    Raises:
        ConfigError, DataError, MissingResourceError: See `load_source`.
        DataError: The share of bad rows of a source is larger than `data.max_rejected`.
    """
    rejects = RejectLog(rejects_path) if rejects_path is not None else None
    sources = {
        name: load_source(name, source, data.of(name), rejects, cache_dir) for name, source in data.sources.items()
    }
    if data.max_rejected is not None:
        for name, source in sources.items():
            share = source.rejected / (source.rejected + len(source.rows))
            if share > data.max_rejected:
                raise DataError(
                    f"data.sources.{name}: {source.rejected} of {source.rejected + len(source.rows)} rows are bad "
                    f"({share:.1%}), more than data.max_rejected={data.max_rejected}"
                    + (f"; they are listed in {rejects_path}" if rejects_path is not None else "")
                )
    return sources


def load_recipe(
    data: DataConfig,
    *,
    seed: int,
    cache_dir: Path,
    rejects_path: Path | None,
    lengths: Callable[[LoadedSource], TokenLengths] | None = None,
    heldout: HeldoutTexts | None = None,
) -> Recipe:
    """Loads all sources of a recipe and applies its filters.

    Args:
        data: The recipe.
        seed: Seed of the run; the schedule derives from it.
        cache_dir: Folder of prepared rows; runs and processes share it.
        rejects_path: File in which bad rows are listed; None in processes other than the first.
        lengths: Returns the token lengths of a source's texts; needed if `data.effective_filters.needs_tokens`.
        heldout: Evaluation texts; needed if `data.leaks` is `drop` or `refuse`.

    Raises:
        ConfigError, DataError, MissingResourceError: See `load_sources` and `clean`.
        DataError: `data.leaks=refuse`, and a training text is an evaluation text.
    """
    sources = load_sources(data, cache_dir=cache_dir, rejects_path=rejects_path)
    dropping = heldout if data.leaks == "drop" else None
    cleaned = clean(sources, data.effective_filters, lengths=lengths, heldout=dropping)
    sources = {name: found.source for name, found in cleaned.items()}
    if data.leaks == "refuse" and heldout is not None:
        refuse_leaks(sources, heldout)
    return Recipe(data, sources, seed=seed)


def refuse_leaks(sources: Mapping[str, LoadedSource], heldout: HeldoutTexts) -> None:
    """Stop if training texts are evaluation texts.

    Raises:
        DataError: The message says how many there are, and shows the first.
    """
    for name, source in sources.items():
        leaks = heldout.leaks(source)
        if leaks.any():
            row = int(leaks.argmax())
            (texts,) = row_texts(source.rows[row : row + 1])
            raise DataError(
                f"data.sources.{name}: {int(leaks.sum())} of {len(source.rows)} instances hold texts of the evaluation "
                f"({', '.join(heldout.names)}). The first, row {row + 1}: {texts[0][:100]!r}. Set data.leaks=drop to "
                "leave them out, or data.leaks=report to train on them anyway"
            )
