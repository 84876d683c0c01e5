"""Results of general ability: metric names, tables, files."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from grace_exp.evaluation.general.compared_model import BASE, TRAINED
from grace_exp.evaluation.general.probe import ProbeResult
from grace_exp.tracking.atomic import write_text_atomic
from grace_exp.tracking.summary import write_json_atomic


@dataclass(frozen=True)
class TaskFigure:
    """The score of a model in a benchmark.

    Attributes:
        task: The harness's name.
        metric: The first of the task's settings, with the filter that reads the answer, e.g. `exact_match
            (strict-match)`.
        value: The score on the harness's scale, where shares range from 0 to 1.
        stderr: Standard error over examples; None if the harness gives none.
        shots: Solved examples in the prompt.
        examples: Number of examples.
        metrics: All measured values, by `<metric>,<filter>`.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    shots: int
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class GeneralResults:
    """The results of one job.

    Attributes:
        tasks: Scores in benchmarks, by model.
        probe: Results of the probe, by held-out set.
        skipped: Why benchmarks were left out.
    """

    tasks: dict[str, list[TaskFigure]]
    probe: dict[str, ProbeResult]
    skipped: dict[str, str]

    @property
    def _by_task(self) -> dict[str, dict[str, TaskFigure]]:
        """Return the scores by task, then by model."""
        found: dict[str, dict[str, TaskFigure]] = {}
        for model, figures in self.tasks.items():
            for figure in figures:
                found.setdefault(figure.task, {})[model] = figure
        return found


def metrics(results: GeneralResults) -> dict[str, float]:
    """Return metrics by name: `general/<task>/<model>`, `general/<set>/{perplexity_<model>,kl_<p>_<q>}`; KL in nats."""
    return {
        **{f"general/{figure.task}/{model}": figure.value for model, rows in results.tasks.items() for figure in rows},
        **{
            f"general/{name}/perplexity_{model}": result.perplexity(model)
            for name, result in results.probe.items()
            for model in result.nll
        },
        **{
            f"general/{name}/kl_{p}_{q}": result.mean_kl((p, q))
            for name, result in results.probe.items()
            for p, q in result.kl
        },
    }


def task_table(results: GeneralResults) -> Table:
    """Return a table of benchmarks (rows) by model (columns), with standard errors and the difference."""
    table = Table(title="General ability, lm-eval's figures (shares of 1)", title_justify="left")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("shots", "examples", *results.tasks, *(["difference"] if TRAINED in results.tasks else [])):
        table.add_column(column, justify="right")
    for name, models in results._by_task.items():
        first_model = next(iter(models.values()))
        values = [
            f"{figure.value:.4f}" + ("" if figure.stderr is None else f" ± {figure.stderr:.4f}")
            for figure in models.values()
        ]
        if TRAINED in models:
            values.append(f"{models[TRAINED].value - models[BASE].value:+.4f}")
        table.add_row(name, first_model.metric, str(first_model.shots), str(first_model.examples), *values)
    for name, why in results.skipped.items():
        table.add_row(name, f"not run: {why}", style="dim")
    return table


def probe_table(results: GeneralResults) -> Table:
    """Return a table of held-out sets (rows): perplexity by model, divergence per token in both directions."""
    table = Table(title="Held-out text (KL: nats a token)", title_justify="left")
    table.add_column("set", no_wrap=True)
    first_probe = next(iter(results.probe.values()))
    columns = [f"perplexity\n{model}" for model in first_probe.nll] + [f"KL\n{p} || {q}" for p, q in first_probe.kl]
    for column in ("texts", "tokens", *columns):
        table.add_column(column, justify="right")
    for name, result in results.probe.items():
        values = [f"{result.perplexity(model):.2f}" for model in result.nll]
        values += [f"{result.mean_kl(pair):.4g}" for pair in result.kl]
        table.add_row(name, str(len(result.tokens)), str(sum(result.tokens)), *values)
    return table


def write_general(folder: Path, results: GeneralResults, about: Mapping[str, Any]) -> None:
    """Write `general.json` (everything) and `general.csv` (a row per value: name, metric, side, value, stderr).

    Args:
        folder: `<run_dir>/evaluation`.
        results: What was measured.
        about: The models and settings, for the JSON file.
    """
    write_json_atomic(
        folder / "general.json",
        {
            **about,
            "tasks": {model: {row.task: asdict(row) for row in rows} for model, rows in results.tasks.items()},
            "skipped": results.skipped,
            "probe": {name: _probe_record(result) for name, result in results.probe.items()},
        },
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "metric", "side", "value", "stderr"])
    writer.writerows(_csv_rows(results))
    write_text_atomic(folder / "general.csv", text.getvalue())


def _csv_rows(results: GeneralResults) -> Sequence[tuple[str, str, str, float, float | str]]:
    return [
        *(
            (row.task, row.metric, model, row.value, "" if row.stderr is None else row.stderr)
            for model, rows in results.tasks.items()
            for row in rows
        ),
        *(
            (name, "perplexity", model, result.perplexity(model), "")
            for name, result in results.probe.items()
            for model in result.nll
        ),
        *(
            (name, "kl", f"{p} || {q}", result.mean_kl((p, q)), "")
            for name, result in results.probe.items()
            for p, q in result.kl
        ),
    ]


def _probe_record(result: ProbeResult) -> dict[str, Any]:
    return {
        "perplexity": {model: result.perplexity(model) for model in result.nll},
        "kl": {f"{p} || {q}": result.mean_kl((p, q)) for p, q in result.kl},
        "sums_per_text": {
            "tokens": result.tokens,
            "nll": result.nll,
            "kl": {f"{p} || {q}": values for (p, q), values in result.kl.items()},
        },
    }
