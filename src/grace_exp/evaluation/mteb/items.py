"""The item scores behind a task's score, from MTEB's prediction files; intervals are resampled from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
from mteb.abstasks.abstask import AbsTask
from mteb.results import TaskResult
from numpy.typing import NDArray

from grace_exp.evaluation.scores import ItemScores
from grace_exp.tracking.summary import write_json_atomic


def read_items(task: AbsTask, result: TaskResult, predictions: Path) -> ItemScores | None:
    """Return the scores of a task's items.

    Args:
        task: The task; its data is loaded if necessary, because MTEB drops it after the evaluation.
        result: The task's result.
        predictions: Folder of MTEB's prediction files.

    Returns:
        Scores of pairs (STS, pair classification), queries (retrieval), test texts (classification; share of the draws
        that are right), or clusterings (clustering; MTEB does not say which texts are in each). None if MTEB has
        written no predictions, and for tasks with several subsets or splits or with another main score.
    """
    file = predictions / task.prediction_file_name
    read = _READ.get(task.metadata.main_score)
    subsets = [(subset, split) for split in task.eval_splits for subset in task.hf_subsets]
    if read is None or len(subsets) != 1 or not file.is_file():
        return None
    if task.dataset is None:
        task.load_data()
    (subset, split) = subsets[0]
    predicted = json.loads(file.read_text(encoding="utf-8"))[subset][split]
    items = read(task, result.scores[split][0], predicted, subset, split)
    # If MTEB has drawn a part of the texts, the items do not match the data.
    same = items is not None and abs(items.figure() - 100 * result.scores[split][0]["main_score"]) < 0.01
    return items if same else None


def write_items(path: Path, items: Mapping[str, ItemScores]) -> None:
    """Write the items of every task as JSON: `{task: {"figure": ..., "values": [...], "human": [...] or null}}`."""
    write_json_atomic(path, {task: scores.as_dict() for task, scores in items.items()})


def load_items(path: Path) -> dict[str, ItemScores]:
    """Read what `write_items` has written."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return {task: ItemScores.from_dict(record) for task, record in records.items()}


def _data(task: AbsTask, subset: str, split: str) -> Any:
    """Return the rows, whether or not the task stores them by subset."""
    data: Any = task.dataset
    return data[split] if split in data else data[subset][split]


def _sts(task: Any, scores: Any, predicted: Any, subset: str, split: str) -> ItemScores | None:
    human = np.array(_data(task, subset, split)["score"], dtype=np.float64)
    return _if_equal_length(_floats(predicted["cosine_scores"]), human)


def _pairs(task: Any, scores: Any, predicted: Any, subset: str, split: str) -> ItemScores | None:
    labels = np.array(_data(task, subset, split)[task.label_column_name]).astype(bool)
    return _if_equal_length(_floats(predicted["cosine_scores"]), labels)


def _retrieval(task: Any, scores: Any, predicted: Any, subset: str, split: str) -> ItemScores | None:
    relevant = _data(task, subset, split)["relevant_docs"]
    by_query = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(predicted)
    return ItemScores(_floats([by_query[query]["ndcg_cut_10"] for query in relevant if query in by_query]), None)


def _classification(task: Any, scores: Any, predicted: Any, subset: str, split: str) -> ItemScores | None:
    labels = np.array(_data(task, subset, split)[task.label_column_name])
    draws = np.array(predicted)
    if draws.shape[1:] != labels.shape:
        return None
    return ItemScores((draws == labels).mean(axis=0), None)


def _clustering(task: Any, scores: Any, predicted: Any, subset: str, split: str) -> ItemScores | None:
    by_level: Mapping[str, Sequence[float]] = scores["v_measures"]
    return ItemScores(_floats([value for level in by_level.values() for value in level]), None)


def _if_equal_length(values: NDArray[np.float64], human: NDArray[Any]) -> ItemScores | None:
    return ItemScores(values, human) if values.shape == human.shape else None


def _floats(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


_READ: dict[str, Callable[..., ItemScores | None]] = {
    "cosine_spearman": _sts,
    "cosine_ap": _pairs,
    "ndcg_at_10": _retrieval,
    "accuracy": _classification,
    "v_measure": _clustering,
}
