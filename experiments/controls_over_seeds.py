"""Print the modes and control rationales of several seeds of a run as one Markdown table.

python experiments/controls_over_seeds.py runs/<name>/<time>_seed0 runs/<name>/<time>_seed1 ...

Each folder is from `job=evaluate evaluation.controls=true`. A score is the mean over seeds, with a 95 % bootstrap
interval over seeds and items; `less` is the difference from the row `rationale`, paired by seed and item.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

from common import over_seeds, resampled

from grace_exp.evaluation.scores import ItemScores

HEAD = ("set", "row", "seeds", "score", "less", "centred", "tokens per text", "ms per text")
WHOLE = "rationale"


def read(folders: Sequence[Path]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the records of `controls.json` by set and row, one per seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for folder in folders:
        record = json.loads((folder / "evaluation" / "controls.json").read_text(encoding="utf-8"))
        for row in record["rows"]:
            found.setdefault(row["set"], {}).setdefault(row["row"], []).append(row)
    return found


def lines(found: dict[str, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Return the lines of the table."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for name, rows in found.items():
        figures = {
            row: {kind: [resampled([ItemScores.from_dict(one[kind])]) for one in runs] for kind in ("plain", "centred")}
            for row, runs in rows.items()
        }
        whole = figures[WHOLE]["plain"]
        for row, runs in rows.items():
            plain, centred = figures[row]["plain"], figures[row]["centred"]
            paired = row != WHOLE and len(plain) == len(whole)
            costs = [statistics.mean(one[cost] for one in runs) for cost in ("tokens_per_text", "ms_per_text")]
            less = str(over_seeds(plain, whole)) if paired else ""
            cells = (name, f"`{row}`", str(len(runs)), str(over_seeds(plain)), less, str(over_seeds(centred)))
            yield f"| {' | '.join(cells)} | {costs[0]:.1f} | {costs[1]:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    missing = [folder for folder in folders if not (folder / "evaluation" / "controls.json").is_file()]
    if missing:
        parser.error(
            f"{missing[0]} has no evaluation/controls.json: name run folders of job=evaluate evaluation.controls=true"
        )
    sys.stdout.write("\n".join(lines(read(folders))) + "\n")


if __name__ == "__main__":
    main()
