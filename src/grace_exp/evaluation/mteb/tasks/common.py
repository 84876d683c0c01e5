"""What the local tasks share: metadata, and drawing a fixed part of the data."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from mteb.abstasks.task_metadata import TaskMetadata

Item = TypeVar("Item")
TaskType = Literal["STS", "Retrieval", "PairClassification", "Clustering", "Classification"]

MAIN_SCORES: dict[TaskType, str] = {
    "STS": "cosine_spearman",
    "Retrieval": "ndcg_at_10",
    "PairClassification": "cosine_ap",  # MTEB's own tasks take the best of five measures, which flatters small sets
    "Clustering": "v_measure",
    "Classification": "accuracy",
}
SHORT_WORDS = 25
"""The longest text of the small suite: some 40 tokens."""


def metadata(
    name: str, task_type: TaskType, *, description: str, source: str, revision: str, reference: str
) -> TaskMetadata:
    """Return a local task's description for MTEB.

    Args:
        name: Name of the task and of its result file; another selection of the data needs another name.
        task_type: MTEB's category.
        description: What the task asks.
        source: Package with the data.
        revision: Revision of the data; results of another revision are not reused.
        reference: URL of the data's documentation.
    """
    return TaskMetadata(
        name=name,
        description=description,
        type=task_type,
        category="t2t",
        main_score=MAIN_SCORES[task_type],
        dataset={"path": source, "revision": revision},
        reference=reference,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        bibtex_citation="",
    )


def short(*texts: str) -> bool:
    """Whether all texts are short enough for the small suite."""
    return all(len(text.split()) <= SHORT_WORDS for text in texts)


def draw(items: Iterable[Item], size: int, key: Callable[[Item], str]) -> list[Item]:
    """Return `size` of the items, chosen by a hash of their keys: the same on every machine and numpy version."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())[:size]
