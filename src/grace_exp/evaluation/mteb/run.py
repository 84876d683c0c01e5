"""Run a suite: stored results are reused, and any number of processes share the texts."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import datasets
import mteb
import torch.distributed as dist
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.models.models_protocols import EncoderProtocol
from mteb.results import TaskResult
from mteb.types import EncodeKwargs

from grace_exp.evaluation.mteb.adapter import EncodingCost, MtebEncoder
from grace_exp.evaluation.mteb.items import read_items
from grace_exp.evaluation.mteb.mteb_results import TaskScore, category_of
from grace_exp.evaluation.mteb.suites import single_tasks
from grace_exp.evaluation.scores import ItemScores


def evaluate_tasks(
    encoder: MtebEncoder,
    tasks: Sequence[AbsTask],
    results_dir: Path,
    *,
    batch_size: int,
    announce: Callable[[str], None],
    show_progress_bar: bool = False,
) -> list[TaskScore]:
    """Evaluate a model on tasks, one after another.

    Results are MTEB's files, `<results_dir>/results/<model>/<revision>/<task>.json`, which the first process writes
    after every task. A task with a stored result on the same data is read and not computed. Its predictions are stored
    under `<results_dir>/predictions/<model>/<revision>/`.

    Args:
        encoder: The model.
        tasks: The tasks.
        results_dir: Folder of MTEB's result cache.
        batch_size: Texts in one batch.
        announce: Called with a line about every task.
        show_progress_bar: Whether to show a bar for the texts of a task.
    """
    cache = mteb.ResultCache(results_dir)
    meta = encoder.mteb_model_meta
    predictions = results_dir / "predictions" / str(meta.name).replace("/", "__") / str(meta.revision)
    everything = list(single_tasks(tasks))
    settings: EncodeKwargs = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    found: dict[str, TaskResult] = {}
    items: dict[str, ItemScores | None] = {}
    costs: dict[str, EncodingCost] = {}
    for number, task in enumerate(everything, start=1):
        name = task.metadata.name
        stored = _from_first_process(partial(_stored, cache, encoder, task))
        encoder.cost = EncodingCost()
        found[name] = stored or _evaluate(encoder, task, cache, predictions, settings)
        items[name] = read_items(task, found[name], predictions) if _is_first() else None
        score = _score(task, found[name], items[name], encoder.cost)
        costs[name] = encoder.cost
        how = "stored" if stored else f"{score.seconds or 0:.0f} s"
        announce(f"{number}/{len(everything)}  {name}  {score.metric} {score.score:.2f}  ({how})")
    scores = []
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            parts = [found[part.metadata.name] for part in single_tasks([task])]
            found[task.metadata.name] = task.combine_task_results(parts)
            if _is_first():
                cache.save_to_cache(found[task.metadata.name], encoder.mteb_model_meta, encode_kwargs=settings)
        name = task.metadata.name
        scores.append(_score(task, found[name], items.get(name), costs.get(name, EncodingCost())))
    return scores


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _from_first_process(read: Callable[[], TaskResult | None]) -> TaskResult | None:
    """Return what the first process reads; another process may already see a file that the first has just written."""
    if not dist.is_initialized():
        return read()
    box = [read() if _is_first() else None]
    dist.broadcast_object_list(box)
    return box[0]


def _stored(cache: mteb.ResultCache, encoder: MtebEncoder, task: AbsTask) -> TaskResult | None:
    """Return the result of all subsets and splits on the present data, if a file holds it."""
    try:
        result = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except ValueError:  # a killed process has left half a file
        return None
    if result is None or result.dataset_revision != task.metadata.revision or result.get_missing_evaluations(task):
        return None
    return result


def _evaluate(
    encoder: MtebEncoder, task: AbsTask, cache: mteb.ResultCache, predictions: Path, settings: EncodeKwargs
) -> TaskResult:
    with warnings.catch_warnings(), _quiet_bars():
        # MTEB warns that newer versions of tasks exist, but the benchmark is fixed.
        warnings.filterwarnings("ignore", module=r"mteb\.")
        done = mteb.evaluate(
            cast("EncoderProtocol", encoder),  # it lacks only the constructor, which MTEB's own command line calls
            task,
            cache=cache if _is_first() else None,
            prediction_folder=predictions if _is_first() else None,
            overwrite_strategy="always",  # results that can be reused have been read before
            encode_kwargs=settings,
            show_progress_bar=False,
            co2_tracker=False,
        )
    return done.task_results[0]


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Hide bars for transformations of small tables; downloads of the hub keep theirs."""
    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def _score(task: AbsTask, result: TaskResult, items: ItemScores | None, cost: EncodingCost) -> TaskScore:
    values = [
        entry["main_score"]
        for split in task.eval_splits
        for entry in result.scores[split]
        if entry["hf_subset"] in task.hf_subsets
    ]
    return TaskScore(
        task.metadata.name,
        category_of(task.metadata.type),
        task.metadata.main_score,
        100 * sum(values) / len(values),
        result.evaluation_time,
        items,
        cost.tokens / cost.texts if cost.texts else None,
        1000 * cost.seconds / cost.texts if cost.texts else None,
    )
