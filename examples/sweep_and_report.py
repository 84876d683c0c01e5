"""Train once for every value of a setting, and read the figures of all runs.

python examples/sweep_and_report.py runs/sweep_example

The same command again runs only what is missing. Each run has a process of its own.
"""

import csv
import subprocess
import sys
from pathlib import Path

FIGURE = "reward/total/mean"


def main(folder: Path, *overrides: str) -> dict[str, float]:
    """Run the sweep; return the figure for each value of the swept setting."""
    command = [
        *(sys.executable, "-m", "grace_exp", "-m"),
        "+experiment=demo_tiny",  # a tiny random model; `demo` trains SmolLM2
        "reward.terms.consistency.weight=0,1",
        f"optimized_metric={FIGURE}",
        f"hydra.sweep.dir={folder}",
        *overrides,
    ]
    subprocess.run(command, check=True)
    with (folder / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {row["reward.terms.consistency.weight"]: float(row[FIGURE]) for row in rows}


if __name__ == "__main__":
    for weight, value in main(Path(sys.argv[1]).resolve(), *sys.argv[2:]).items():
        print(f"consistency.weight={weight}: {FIGURE} {value:+.3f}")
