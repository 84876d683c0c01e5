"""Train methods over seeds, measure them on the same benchmark, and write a table with one row per method.

Trainings and evaluations are sweeps of grace-exp. The same command again runs only what is missing.
"""

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from common import Figures, over_seeds, resampled

from grace_exp.evaluation.mteb.items import load_items
from grace_exp.evaluation.scores import Score

SWEEPS = Path("runs/sweeps")
PAPER = Path(__file__).parent / "paper" / "mteb_results.csv"
"""arXiv 2510.04506, tables 1 and 2."""
SUITE = "offline_small"
EVALUATION = ("job=evaluate", f"evaluation={SUITE}", "evaluation.max_tokens=16")  # the number in training
COLUMNS = {
    "retrieval": "WordNetGlosses.small",
    "clustering": "WordNetClasses.small",
    "pair_classification": "WordNetSenses.small",
    "classification": "VaderMovies.small",
    "sts": "StsbTest.small",
}
"""From the paper's columns that the suite has to its task."""


@dataclass(frozen=True)
class Training:
    """A sweep over seeds.

    Attributes:
        folder: Folder of the sweep, under `runs/sweeps`.
        overrides: Overrides of its command.
    """

    folder: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        method: Its name in the table.
        overrides: Overrides that choose the experiment in the evaluation.
        training: The sweep that makes its runs; None: the untrained model.
        reward: Reward of its runs, if a sweep has several.
        paper: Its name in the paper's tables.
    """

    method: str
    overrides: tuple[str, ...]
    training: Training | None = None
    reward: str | None = None
    paper: str | None = None


def trained(method: str, experiment: str, paper: str | None = None) -> Row:
    """Return a method with an experiment of its own, which is trained over the seeds without evaluation."""
    overrides = (f"+experiment={experiment}",)
    only_train = ("evaluation=none", "callbacks.export=[]", "logger=csv")
    return Row(method, overrides, Training(f"{experiment}_seeds", (*overrides, *only_train)), paper=paper)


UNTRAINED = (
    Row("base", ("+experiment=smollm2_base",), paper="base"),
    Row("reasoning", ("+experiment=smollm2_reasoning",), paper="reasoning"),
)


@dataclass(frozen=True)
class Table:
    """A table of the paper, with our rows beside it.

    Attributes:
        folder: Folder of its script and results.
        title: Title of the figure and the table.
        rows: One per method.
        references: Methods that the others are compared with. The figure uses the first.
        paper_setting: The paper's rows to show. Untrained models are listed under `supervised`.
    """

    folder: Path
    title: str
    rows: tuple[Row, ...]
    references: tuple[str, ...]
    paper_setting: str

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name


def main(table: Table) -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=table.title)
    parser.add_argument("--jobs", type=int, default=1, help="how many sweeps run side by side")
    parser.add_argument("--seeds", default="0,1,2", help="of the trainings; other than these are a try too")
    parser.add_argument("--collect", action="store_true", help="run nothing: write the table of what has been run")
    parser.add_argument(
        "overrides", nargs="*", help="settings for all runs, as job.steps=1: a try, whose table goes to runs/"
    )
    arguments = parser.parse_args()
    extra = tuple(arguments.overrides)
    suffix = "_try" if extra or arguments.seeds != parser.get_default("seeds") else ""
    results = Path("runs") / (table.name + suffix) if suffix else table.folder
    if not arguments.collect:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            trainings = dict.fromkeys(row.training for row in table.rows if row.training)
            list(pool.map(partial(_train, seeds=arguments.seeds, extra=extra, suffix=suffix), trainings))
            list(pool.map(partial(_evaluate, table, extra=extra, suffix=suffix), table.rows))
    runs = {row.method: _read(table, row, suffix) for row in table.rows}
    results.mkdir(parents=True, exist_ok=True)
    _write(table, _model(table, suffix), runs, results)
    sys.stdout.write((results / "table.md").read_text())


def _sweep(folder: str, overrides: Iterable[str]) -> None:
    command = [sys.executable, "-m", "grace_exp", "-m", *overrides, f"hydra.sweep.dir={SWEEPS / folder}"]
    sys.stdout.write(" ".join(command[1:]) + "\n")
    subprocess.run(command, check=True)


def _train(training: Training, seeds: str, extra: tuple[str, ...], suffix: str) -> None:
    _sweep(training.folder + suffix, (*training.overrides, f"seed={seeds}", *extra))


def _evaluate(table: Table, row: Row, extra: tuple[str, ...], suffix: str) -> None:
    overrides = [*row.overrides, *EVALUATION, "logger=csv", "callbacks.export=[]", *extra]
    if row.training is not None:
        folders = ",".join(str(folder) for folder in _runs(row, SWEEPS / (row.training.folder + suffix)).values())
        overrides.append(f"job.resume={folders}")
    _sweep(_evaluations(table, row, suffix), overrides)


def _evaluations(table: Table, row: Row, suffix: str) -> str:
    return f"{table.name}_{row.method.replace(' ', '_')}{suffix}"


def _runs(row: Row, sweep: Path) -> dict[int, Path]:
    """Return the finished runs of a row by seed."""
    experiment = row.overrides[0].partition("=")[2]
    found = {}
    for path in sorted(sweep.glob("*/result.json")):
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        if config["name"] == experiment and row.reward in (None, config["reward"]["name"]):
            found[config["seed"]] = path.parent
    if not found:
        raise SystemExit(f"{sweep} holds no finished run of {row.method}: run without --collect")
    return found


def _read(table: Table, row: Row, suffix: str) -> dict[int, Figures]:
    """Return the figures of a row, one column per task, by the run's seed."""
    sweep = SWEEPS / _evaluations(table, row, suffix)
    found = {}
    for path in sorted(sweep.glob(f"*/evaluation/{SUITE}_items.json")):
        config = yaml.safe_load((path.parents[1] / "config.yaml").read_text())
        resumed = config["job"]["resume"]
        seed = yaml.safe_load((Path(resumed) / "config.yaml").read_text())["seed"] if resumed else config["seed"]
        items = load_items(path)
        found[seed] = resampled([items[task] for task in COLUMNS.values()])
    if not found:
        raise SystemExit(f"{sweep} holds no finished evaluation of {row.method}: run without --collect")
    return dict(sorted(found.items()))


def _model(table: Table, suffix: str) -> str:
    """Return the backbone's name in this project."""
    path = next((SWEEPS / _evaluations(table, table.rows[0], suffix)).glob("*/config.yaml"))
    return str(yaml.safe_load(path.read_text())["backbone"]["name"])


def _write(table: Table, model: str, runs: Mapping[str, Mapping[int, Figures]], results: Path) -> None:
    scores = _scores(table, runs)
    paper = _paper(table)
    with (results / "seeds.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["method", "seed", *COLUMNS])
        for method, seeds in runs.items():
            for seed, run in seeds.items():
                writer.writerow([method, seed, *(f"{task[0]:.2f}" for task in run)])
    with (results / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["source", "backbone", "method", "compared_with", "column", "points", "low", "high"])
        for (method, less, column), score in scores.items():
            writer.writerow(["here", model, method, less, column, *(f"{x:.2f}" for x in _numbers(score))])
        for (backbone, method, less, column), value in paper.items():
            writer.writerow(["paper", backbone, method, less, column, f"{value:.2f}", "", ""])
    (results / "table.md").write_text(_markdown(table, model, runs, scores, paper))
    _draw(table, model, scores, paper, results / "table.svg")


Scores = dict[tuple[str, str, str], Score]  # method, compared method or "", column
PaperScores = dict[tuple[str, str, str, str], float]  # backbone first


def _scores(table: Table, runs: Mapping[str, Mapping[int, Figures]]) -> Scores:
    found: Scores = {}
    for row in table.rows:
        own = list(runs[row.method].values())
        for less in ("", *table.references):
            others = list(runs[less].values()) if less else []
            if less == row.method:
                continue
            for number, column in enumerate(COLUMNS):
                task = slice(number, number + 1)
                found[row.method, less, column] = over_seeds([run[task] for run in own], [run[task] for run in others])
            found[row.method, less, "average"] = over_seeds(own, others)
    return found


def _paper(table: Table) -> PaperScores:
    """Return the paper's figures for our columns, their mean as average, and its differences to the references."""
    untrained = {row.paper for row in UNTRAINED}
    with PAPER.open() as stream:
        rows = [
            row for row in csv.DictReader(stream) if row["method"] in untrained or row["setting"] == table.paper_setting
        ]
    found: PaperScores = {}
    for row in rows:
        values = {column: float(row[column]) for column in COLUMNS}
        values["average"] = statistics.mean(values.values())
        found |= {(row["backbone"], row["method"], "", column): value for column, value in values.items()}
    names = {row.method: row.paper for row in table.rows if row.paper}
    for less in table.references:
        found |= {
            (backbone, method, less, column): value - found[backbone, names[less], "", column]
            for (backbone, method, compared, column), value in list(found.items())
            if not compared and less in names and method != names[less]
        }
    return found


def _numbers(score: Score) -> tuple[float, float, float]:
    assert score.low is not None and score.high is not None
    return score.value, score.low, score.high


def _markdown(
    table: Table, model: str, runs: Mapping[str, Mapping[int, Figures]], scores: Scores, paper: PaperScores
) -> str:
    columns = [*COLUMNS, "average"]
    head = ["| " + " | ".join(["model", "method", "runs", *columns]) + " |", "|---" * (len(columns) + 3) + "|"]
    backbones = list(dict.fromkeys(backbone for backbone, *_ in paper))

    def part(less: str) -> list[str]:
        lines = [*head]
        for row in table.rows:
            if (row.method, less, "average") in scores:
                cells = [str(scores[row.method, less, column]) for column in columns]
                lines.append(
                    "| " + " | ".join([f"{model} (here)", row.method, str(len(runs[row.method])), *cells]) + " |"
                )
        for backbone in backbones:
            for method in dict.fromkeys(method for name, method, *_ in paper if name == backbone):
                if (backbone, method, less, "average") in paper:
                    cells = [f"{paper[backbone, method, less, column]:.1f}" for column in columns]
                    lines.append("| " + " | ".join([f"{backbone} (paper)", method, "1", *cells]) + " |")
        return lines

    lines = [f"**{table.title}.** Points; 95 % bootstrap intervals over runs and items.", "", *part("")]
    for less in table.references:
        lines += ["", f"Differences to `{less}`:", "", *part(less)]
    return "\n".join([*lines, ""])


def _draw(table: Table, model: str, scores: Scores, paper: PaperScores, path: Path) -> None:
    """Draw differences to the first reference: ours with intervals, the paper's as mean and range of four backbones."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "grace-exp"
    from matplotlib import pyplot

    columns, reference = [*COLUMNS, "average"], table.references[0]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
    others = [row for row in table.rows if row.method != reference]
    colors = {row.method: f"C{number}" for number, row in enumerate(others)}
    for place, row in enumerate(others):
        x = [number + (place - (len(others) - 1) / 2) * 0.8 / len(others) for number in range(len(columns))]
        values = [_numbers(scores[row.method, reference, column]) for column in columns]
        errors = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
        axes[0].errorbar(
            x, [v for v, *_ in values], errors, fmt="o", ms=4, color=colors[row.method], label=row.method, capsize=2
        )
        if row.paper is None:
            continue
        by_column = [
            [
                v
                for (_, method, less, name), v in paper.items()
                if (method, less, name) == (row.paper, reference, column)
            ]
            for column in columns
        ]
        middles = [statistics.mean(values) for values in by_column]
        spread = [
            [m - min(v) for m, v in zip(middles, by_column, strict=True)],
            [max(v) - m for m, v in zip(middles, by_column, strict=True)],
        ]
        axes[1].errorbar(x, middles, spread, fmt="o", ms=4, color=colors[row.method], label=row.paper, capsize=2)
    for axis, title in zip(axes, (f"here: {model}", "paper: mean and range of four backbones"), strict=True):
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set(title=title, ylabel=f"points above {reference}")
        axis.set_xticks(range(len(columns)), [column.replace("_", "\n") for column in columns])
        axis.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
