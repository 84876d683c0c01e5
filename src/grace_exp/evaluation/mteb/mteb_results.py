"""Results of a benchmark: tasks, categories, averages, and their table."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from grace_exp.evaluation.scores import ItemScores
from grace_exp.evaluation.scores import score as interval
from grace_exp.tracking.atomic import write_text_atomic

CATEGORIES = {
    "Retrieval": "retrieval",
    "Reranking": "reranking",
    "Clustering": "clustering",
    "PairClassification": "pair_classification",
    "Classification": "classification",
    "STS": "sts",
    "Summarization": "summarization",
}
"""MTEB's categories in the order of the paper's tables, with the names of our columns."""


def category_of(kind: str) -> str:
    """Return our name of an MTEB category: `InstructionReranking` becomes `instruction_reranking`."""
    return CATEGORIES.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


V1_COUNTS = dict(zip(CATEGORIES.values(), (15, 4, 11, 3, 12, 10, 1), strict=True))
"""Number of tasks of MTEB English v1 per category; 56 together."""


@dataclass(frozen=True)
class TaskScore:
    """The score of a model in one task.

    Attributes:
        task: Its name.
        category: One of `CATEGORIES`' values.
        metric: The task's main score.
        score: The score in points (x 100), mean over subsets and splits.
        seconds: Time of the evaluation when it was computed; None: not recorded.
        items: Item scores behind the score, for intervals; None if MTEB does not give them.
        tokens_per_text: Tokens of rationales per text, when it was computed.
        ms_per_text: Milliseconds of the model's work per text, when it was computed; texts in the cache take none.
    """

    task: str
    category: str
    metric: str
    score: float
    seconds: float | None = None
    items: ItemScores | None = None
    tokens_per_text: float | None = None
    ms_per_text: float | None = None


def category_means(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return the mean score of every category with tasks, in the paper's order."""
    names = dict.fromkeys([*CATEGORIES.values(), *(score.category for score in scores)])
    by_category = {name: [score.score for score in scores if score.category == name] for name in names}
    return {name: sum(values) / len(values) for name, values in by_category.items() if values}


def averages(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the averages of a benchmark from the means of its categories.

    Args:
        means: Mean per category.
        counts: Number of tasks per category.

    Returns:
        `average_over_tasks`: every task counts once. `average_over_categories`: every category counts once. For MTEB
        English v1 also `average_as_in_paper`: the average that arXiv 2510.04506 prints counts the one summarization
        task ten times (weights 15, 4, 11, 3, 12, 10, 10 over 65), so its scores must be compared with this one.
    """
    found = {
        "average_over_tasks": _weighted(means, counts),
        "average_over_categories": _weighted(means, dict.fromkeys(means, 1)),
    }
    if {name: counts[name] for name in means} == V1_COUNTS:
        found["average_as_in_paper"] = _weighted(means, {**counts, "summarization": 10})
    return found


def _weighted(means: Mapping[str, float], weights: Mapping[str, int]) -> float:
    return sum(mean * weights[name] for name, mean in means.items()) / sum(weights[name] for name in means)


def figures(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return all results by metric name: `mteb/<task>`, `mteb/category/<category>` and `mteb/<average>`."""
    means = category_means(scores)
    counts = {name: sum(score.category == name for score in scores) for name in means}
    return {
        **{f"mteb/{score.task}": score.score for score in scores},
        **{f"mteb/category/{name}": mean for name, mean in means.items()},
        **{f"mteb/{name}": value for name, value in averages(means, counts).items()},
    }


_COSTS = ("tokens_per_text", "ms_per_text")


def write_csv(path: Path, models: Mapping[str, Sequence[TaskScore]], resamples: int = 0) -> None:
    """Write a row for each model and task.

    The columns are: model, task, category, metric, score, the 95 % interval, seconds, tokens and milliseconds per text.

    Args:
        path: The file.
        models: Scores by model.
        resamples: Number of resamples of the bootstrap over a task's items; 0: no intervals.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "category", "metric", "score", "low", "high", "seconds", *_COSTS])
    for model, scores in models.items():
        for score in scores:
            seconds = "" if score.seconds is None else f"{score.seconds:.1f}"
            interval = _interval(score, resamples)
            costs = ["" if value is None else f"{value:.2f}" for value in (getattr(score, name) for name in _COSTS)]
            row = [model, score.task, score.category, score.metric, f"{score.score:.4f}", *interval, seconds, *costs]
            writer.writerow(row)
    write_text_atomic(path, text.getvalue())


def _interval(score: TaskScore, resamples: int) -> tuple[str, str]:
    if score.items is None:
        return "", ""
    found = interval(score.items, resamples)
    return ("", "") if found.low is None or found.high is None else (f"{found.low:.2f}", f"{found.high:.2f}")


def category_table(
    suite: str, models: Mapping[str, Sequence[TaskScore]], published: Mapping[str, float] | None = None
) -> Table:
    """Return a table of categories and averages (rows) by model (columns), with the number of tasks.

    Args:
        suite: The suite's name.
        models: Scores by model, all on the same tasks.
        published: Scores of MTEB English v1 by category and average, for a column `paper`. They are shown only beside
            categories that have all tasks of v1.
    """
    table = Table(title=f"{suite}: means per category, points", title_justify="left")
    table.add_column("category")
    table.add_column("tasks", justify="right")
    for model in models:
        table.add_column(model, justify="right")
    if published is not None:
        table.add_column("paper", justify="right")
    by_model = [figures(scores) for scores in models.values()]
    first_model = next(iter(models.values()))
    for name in category_means(first_model):
        count = sum(score.category == name for score in first_model)
        own = [f"{found[f'mteb/category/{name}']:.2f}" for found in by_model]
        table.add_row(name, str(count), *own, *_published(published, name, count == V1_COUNTS.get(name)))
    table.add_section()
    for name, label in (
        ("average_over_tasks", "average over tasks"),
        ("average_over_categories", "average over categories"),
        ("average_as_in_paper", "average as in the paper (SummEval ten times)"),
    ):
        if f"mteb/{name}" in by_model[0]:
            own = [f"{found[f'mteb/{name}']:.2f}" for found in by_model]
            whole = "mteb/average_as_in_paper" in by_model[0]
            table.add_row(label, str(len(first_model)), *own, *_published(published, name, whole), style="bold")
    return table


def _published(figures: Mapping[str, float] | None, name: str, comparable: bool) -> list[str]:
    """Return the cell of the column `paper`, if there is that column."""
    if figures is None:
        return []
    return [f"{figures[name]:.2f}" if comparable and name in figures else ""]
