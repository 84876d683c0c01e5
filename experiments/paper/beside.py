"""Print expected figures beside those of a finished run.

python experiments/paper/beside.py runs/qwen_sup/<time>_seed0

The script prints the paper's row of the run's backbone and method, on MTEB English v1, beside the run's evaluation. For
SmolLM2 it prints the figures of experiments/table1_supervised, experiments/table2_unsupervised and experiments/demo.
"""

import argparse
import csv
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grace_exp.evaluation.mteb.mteb_results import CATEGORIES, V1_COUNTS, averages

HERE = Path(__file__).parent
AVERAGE = "reported_avg"
SMOLLM2_TABLES = {"supervised": "table1_supervised", "unsupervised": "table2_unsupervised"}
SUITE_OF_SMOLLM2 = "offline_small"


@dataclass(frozen=True)
class Row:
    """One model trained by one method, as the tables name it.

    Attributes:
        backbone: Name of the model, e.g. `Qwen2.5-1.5B-Instruct`.
        method: Name of the row, e.g. `grace`.
        setting: `supervised` or `unsupervised`; untrained models are listed under `supervised`.
    """

    backbone: str
    method: str
    setting: str


@dataclass(frozen=True)
class Comparison:
    """Figures by name: what is expected, and what the run has (None: not measured yet).

    Attributes:
        title: What the figures are.
        figures: Maps a figure's name to the expected text and the run's text.
        missing: Command that measures what the run lacks; None if nothing is missing.
    """

    title: str
    figures: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    missing: str | None = None


def row_of(config: dict[str, Any]) -> Row:
    """Return the row that a run's resolved settings belong to."""
    job, method = config["job"], config["method"]["name"]
    source = config["backbone"]["path"] or config["backbone"]["name"]
    if job["name"] == "evaluate" and job["resume"] is None and job["model"] is None:
        return Row(Path(source).name, "base" if job["encode"]["mode"] == "prompt_only" else "reasoning", "supervised")
    name = method.replace("_", " ")
    pathwise: dict[str, Any] = config["objective"].get("pathwise") or {}  # runs of older versions have none
    if pathwise.get("weight", 0.0) > 0:
        name += " with the pathwise gradient"
    if config["backbone"]["name"] == "smollm2" and config["reward"]["name"] == "infonce" and name == "grace":
        name = "grace infonce"
    return Row(Path(source).name, name, config["data"]["mode"])


def compare(folder: Path) -> list[Comparison]:
    """Return all expected figures for a run, each beside the run's own.

    Args:
        folder: The run folder.

    Raises:
        FileNotFoundError: The folder has no config.yaml.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    row = row_of(config)
    found = [_of_paper(row, folder, config), _of_smollm2(row, folder, config)]
    if config["name"] == "demo":
        found.append(_of_demo(folder))
    return [comparison for comparison in found if comparison is not None]


def _of_paper(row: Row, folder: Path, config: dict[str, Any]) -> Comparison | None:
    expected = next((r for r in _read(HERE / "mteb_results.csv") if _names(r, row)), None)
    if expected is None:
        return None
    measured = _category_means(folder / "evaluation" / "mteb_en_v1.csv")
    if measured:
        measured[AVERAGE] = averages(measured, V1_COUNTS).get("average_as_in_paper", float("nan"))
    figures = {
        name: (f"{float(expected[name]):.2f}", f"{measured[name]:.2f}" if name in measured else None)
        for name in (*CATEGORIES.values(), AVERAGE)
    }
    title = f"{row.backbone}, {row.method}, {row.setting}: MTEB English v1 (expected: arXiv 2510.04506)"
    return Comparison(title, figures, None if measured else _command(folder, config, "mteb_en_v1"))


def _of_smollm2(row: Row, folder: Path, config: dict[str, Any]) -> Comparison | None:
    if config["backbone"]["name"] != "smollm2" or row.setting not in SMOLLM2_TABLES:
        return None
    rows = [
        r
        for r in _read(HERE.parent / SMOLLM2_TABLES[row.setting] / "table.csv")
        if r["source"] == "here" and r["method"] == row.method and not r["compared_with"]
    ]
    if not rows:
        return None
    measured = _category_means(folder / "evaluation" / f"{SUITE_OF_SMOLLM2}.csv")
    if measured:
        measured["average"] = sum(measured.values()) / len(measured)
    figures = {
        r["column"]: (
            f"{float(r['points']):.1f} [{float(r['low']):.1f}, {float(r['high']):.1f}]",
            f"{measured[r['column']]:.1f}" if r["column"] in measured else None,
        )
        for r in rows
    }
    title = f"SmolLM2, {row.method}, {row.setting}: {SUITE_OF_SMOLLM2} (expected: experiments/, three seeds)"
    return Comparison(title, figures, None if measured else _command(folder, config, SUITE_OF_SMOLLM2))


def _of_demo(folder: Path) -> Comparison | None:
    summary = folder / "summary.json"
    heldout = json.loads(summary.read_text(encoding="utf-8"))["heldout"] if summary.is_file() else {}
    rows = _read(HERE.parent / "demo" / "seeds.csv")
    figures: dict[str, tuple[str, str | None]] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        for moment in ("before", "after"):
            values = [float(row["value"]) for row in rows if (row["set"], row["embedding"]) == (name, moment)]
            expected = f"{min(values):.1f}" + (f" to {max(values):.1f}" if len(set(values)) > 1 else "")
            own = heldout.get(name, {}).get(moment)
            figures[f"{name}, rationale, {moment}"] = (expected, f"{own['value']:.1f}" if own else None)
    return Comparison("demo: held-out figures (expected: experiments/demo, five seeds)", figures)


def _names(row: dict[str, str], wanted: Row) -> bool:
    return (row["backbone"], row["method"], row["setting"]) == (wanted.backbone, wanted.method, wanted.setting)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _category_means(path: Path) -> dict[str, float]:
    """Return the mean per category of the first model in a benchmark's CSV; empty if there is no CSV."""
    if not path.is_file():
        return {}
    rows = _read(path)
    own = [row for row in rows if row["model"] == rows[0]["model"]]
    scores = {name: [float(row["score"]) for row in own if row["category"] == name] for name in CATEGORIES.values()}
    return {name: sum(values) / len(values) for name, values in scores.items() if values}


def _command(folder: Path, config: dict[str, Any], suite: str) -> str:
    resume = f"job.resume={shlex.quote(str(folder))}" if config["job"]["name"] == "train" else ""
    command = f"python -m grace_exp +experiment={config['name']} job=evaluate evaluation={suite} {resume}"
    return command.rstrip()


def main() -> int:
    """Print the tables; return 1 if there are no expected figures for such a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished run, e.g. runs/demo/<time>_seed0")
    folder = parser.parse_args().folder
    if not (folder / "config.yaml").is_file():
        parser.error(f"{folder} is no run folder: it holds no config.yaml")
    console = Console()
    comparisons = compare(folder)
    for comparison in comparisons:
        table = Table("figure", "expected", "this run", title=escape(comparison.title), title_justify="left")
        for name, (expected, own) in comparison.figures.items():
            table.add_row(name, expected, own or "-")
        console.print(table)
        if comparison.missing:
            console.print(f"Measure it: {escape(comparison.missing)}", highlight=False, soft_wrap=True)
    if not comparisons:
        console.print("Neither the paper nor a study here has a figure of this backbone and method.")
    return 0 if comparisons else 1


if __name__ == "__main__":
    sys.exit(main())
