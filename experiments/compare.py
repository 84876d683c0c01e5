"""Compare models on a benchmark, item by item and seed by seed.

python experiments/compare.py grace=runs/a,runs/b exact=runs/c,runs/d        folders of job=evaluate, one per seed
python experiments/compare.py base=runs/x exact=runs/c,runs/d --points 2     one run compared with every seed

The folders are those of `job=evaluate evaluation=offline_study` (or of another suite, `--suite`), in the order of the
seeds. The first model is the reference of the differences.
"""

import argparse
import sys
from pathlib import Path

from common import Figures, over_seeds, resampled, seeds_needed

from grace_exp.evaluation.mteb.items import load_items


def main() -> None:
    """Read, resample, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    parser.add_argument("--suite", default="offline_study", help="whose items are read")
    parser.add_argument("--points", type=float, default=2.0, help="the difference that seeds are counted for")
    arguments = parser.parse_args()
    runs: dict[str, list[Figures]] = {}
    tasks: list[str] = []
    for model in arguments.models:
        name, _, folders = model.partition("=")
        if not folders:
            parser.error(f"{model}: give NAME=FOLDER")
        runs[name] = []
        for folder in folders.split(","):
            path = Path(folder) / "evaluation" / f"{arguments.suite}_items.json"
            if not path.is_file():
                parser.error(f"{path} is not there: run job=evaluate evaluation={arguments.suite} into {folder}")
            items = load_items(path)
            if tasks and list(items) != tasks:
                parser.error(f"{path} has the tasks {', '.join(items)}; the first file has {', '.join(tasks)}")
            tasks = list(items)
            runs[name].append(resampled(list(items.values())))
    counts = {len(found) for found in runs.values()} - {1}
    if len(counts) > 1:
        parser.error(f"{sorted(counts)} seeds: give as many of each model, or one where there are no seeds")
    sys.stdout.write("\n".join(_table(runs, tasks, arguments.points)) + "\n")


def _table(runs: dict[str, list[Figures]], tasks: list[str], points: float) -> list[str]:
    reference = next(iter(runs))
    head = ["model", "seeds", *tasks, "average", f"less {reference}", f"seeds for {points:g} points"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in runs.items():
        cells = [str(over_seeds([run[task : task + 1] for run in found])) for task in range(len(tasks))]
        cells.append(str(over_seeds(found)))
        if name != reference:
            others = runs[reference]
            count = max(len(found), len(others))
            pairs = [(found[seed % len(found)], others[seed % len(others)]) for seed in range(count)]
            differences = [float((own[:, 0] - other[:, 0]).mean()) for own, other in pairs]
            cells += [str(over_seeds(found, others)), seeds_needed(differences, points)]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join([name, str(len(found)), *cells]) + " |")
    return lines


if __name__ == "__main__":
    main()
