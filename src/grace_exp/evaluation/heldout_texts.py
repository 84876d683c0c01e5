"""The texts of an evaluation, which training must not contain."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grace_exp.config.evaluation import EvaluationConfig
from grace_exp.evaluation.heldout_sets import load_set

_NO_TEXTS = {"id", "_id", "query-id", "corpus-id", "label", "labels", "score", "language", "lang"}
"""Columns of MTEB's data sets that hold no text."""


def heldout_texts(config: EvaluationConfig, cache_dir: Path) -> dict[str, list[str]]:
    """Return the texts that an evaluation embeds, by set or task.

    Args:
        config: Its held-out sets, and the tasks of its benchmark if it has one.
        cache_dir: Folder for data from package registries.

    Raises:
        MissingResourceError: The data is neither on this machine nor reachable.
    """
    found: dict[str, list[str]] = {}
    for name, settings in config.sets.items():
        chosen = load_set(name, settings)
        found[name] = [*chosen.first, *chosen.second]
    if config.benchmark is not None:
        from grace_exp.evaluation.mteb.suites import check_available, single_tasks, suite_tasks

        tasks = suite_tasks(config.benchmark, cache_dir)
        check_available(tasks, cache_dir)
        for task in single_tasks(tasks):
            task.load_data()
            found[task.metadata.name] = list(_texts(task.dataset))
    return found


def _texts(data: Any) -> Iterator[str]:
    """Yield all texts in MTEB's nested data sets."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            if key not in _NO_TEXTS:
                yield from _texts(value)
    elif hasattr(data, "column_names"):
        for column in data.column_names:
            if column not in _NO_TEXTS:
                yield from _texts(data[column])
    elif hasattr(data, "__iter__"):
        for value in data:
            yield from _texts(value)
