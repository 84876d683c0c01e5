"""The study's tables from its run folders."""

import csv
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Figures, over_seeds, resampled, seeds_needed
from stages import STAGES, Mode, Row, Stage, folder_of, items_of, rows_of

from grace_exp.evaluation.mteb.items import load_items
from grace_exp.evaluation.scores import ItemScores
from grace_exp.training.callbacks.heldout_evaluation import read_results

NORMS = ("train/policy_gradient_norm", "train/pathwise_norm", "train/gradient_cosine", "train/grad_norm")
BOTH_MODES: tuple[Mode, ...] = ("rationale", "prompt_only")
Runs = dict[int, dict[Mode, list[ItemScores]]]  # by seed; a held-out set an entry


def write_report(runs: Path, results: Path) -> None:
    """Write `tables.md` and `seeds.csv` into `results`, of what has been run."""
    lines, rows = [], list[dict[str, object]]()
    for stage in STAGES:
        found = {row.name: _read(runs, owner, row) for owner, row in rows_of(stage)}
        found = {name: seeds for name, seeds in found.items() if seeds}
        if any(row.name in found for row in stage.rows):
            lines += [f"## {stage.title}", "", *_table(stage, found), "", *_norms(runs, stage), ""]
            if offline := _offline(runs, stage):
                lines += [f"### {stage.title}: offline_study", "", *offline, ""]
            rows += _seed_rows(runs, stage)
    results.mkdir(parents=True, exist_ok=True)
    (results / "tables.md").write_text("\n".join(lines))
    if rows:
        with (results / "seeds.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.stdout.write("\n".join(lines) + "\n")


def _finished(runs: Path, stage: Stage, row: Row) -> dict[int, Path]:
    folders = {seed: folder_of(runs, stage, row, seed) for seed in stage.seeds}
    return {seed: folder for seed, folder in folders.items() if (folder / "evaluation" / "after.json").is_file()}


def _read(runs: Path, stage: Stage, row: Row) -> Runs:
    found: Runs = {}
    for seed, folder in _finished(runs, stage, row).items():
        sets = read_results(folder / "evaluation" / "after.json").values()
        found[seed] = {"rationale": [one.rationale for one in sets], "prompt_only": [one.prompt_only for one in sets]}
    return found


def _table(stage: Stage, found: Mapping[str, Runs]) -> list[str]:
    """Means over the held-out sets, and differences over the seeds that both rows have; one resampling for all."""
    modes = {row.name: row.mode for _, row in rows_of(stage)}
    figures: dict[tuple[str, Mode], dict[int, Figures]] = {
        (name, mode): {seed: resampled(run[mode]) for seed, run in seeds.items()}
        for name, seeds in found.items()
        for mode in BOTH_MODES
    }
    own = {name: figures[name, modes[name]] for name in found}
    prompt_only = {name: [str(over_seeds(list(figures[name, "prompt_only"].values())))] for name in found}
    return _compared(stage, own, ["prompt only"], prompt_only)


def _offline(runs: Path, stage: Stage) -> list[str]:
    """The same of `evaluation=offline_study`, each recipe in its own mode: means of the tasks; none where none was."""
    own: dict[str, dict[int, Figures]] = {}
    tasks: list[str] = []
    for owner, row in rows_of(stage):
        for seed, folder in _finished(runs, owner, row).items():
            path = items_of(folder)
            if path.is_file():
                items = load_items(path)
                tasks = list(items)
                own.setdefault(row.name, {})[seed] = resampled(list(items.values()))
    cells = {
        name: [f"{statistics.mean(run[task, 0] for run in found.values()):.1f}" for task in range(len(tasks))]
        for name, found in own.items()
    }
    return _compared(stage, own, [task.partition(".")[0] for task in tasks], cells) if own else []


def _compared(
    stage: Stage, own: Mapping[str, Mapping[int, Figures]], columns: list[str], cells: Mapping[str, list[str]]
) -> list[str]:
    """A table of means, further cells, and differences from the stage's references, paired by item and seed."""
    references = [name for name in stage.references if name in own]
    head = ["recipe", "seeds", "mean", *columns, *(f"less {name}" for name in references), "seeds for 2 points"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in own.items():
        row, needed = [str(over_seeds(list(found.values()))), *cells[name]], ""
        for reference in references:
            other = own[reference]
            shared = sorted(found.keys() & other.keys())
            if name == reference or not shared:
                row.append("")
                continue
            pairs = [found[seed] for seed in shared], [other[seed] for seed in shared]
            row.append(str(over_seeds(*pairs)))
            needed = seeds_needed([float((a[:, 0] - b[:, 0]).mean()) for a, b in zip(*pairs, strict=True)], 2.0)
        lines.append("| " + " | ".join([name, str(len(found)), *row, needed]) + " |")
    return lines


def _norms(runs: Path, stage: Stage) -> list[str]:
    """Norms of both parts where they were measured, first and last step of each run, means over seeds."""
    lines = []
    for row in stage.rows:
        first, last = [], []
        for folder in _finished(runs, stage, row).values():
            with (folder / "metrics.csv").open() as stream:
                measured = [line for line in csv.DictReader(stream) if line.get(NORMS[0])]
            if measured:
                first.append(measured[0])
                last.append(measured[-1])
        if first:
            cells = [
                f"{statistics.mean(float(line[name]) for line in first):.2f}, "
                f"{statistics.mean(float(line[name]) for line in last):.2f}"
                for name in NORMS
            ]
            lines.append("| " + " | ".join([row.name, *cells]) + " |")
    head = ["gradient norms (first and last measured step)", "policy gradient", "pathwise", "cosine", "whole"]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines] if lines else []


def _seed_rows(runs: Path, stage: Stage) -> list[dict[str, object]]:
    rows = []
    for row in stage.rows:
        for seed, folder in _finished(runs, stage, row).items():
            for name, result in read_results(folder / "evaluation" / "after.json").items():
                figures = {mode: round(getattr(result, mode).figure(), 2) for mode in BOTH_MODES}
                rows.append({"stage": stage.name, "recipe": row.name, "seed": seed, "set": name} | figures)
    return rows
