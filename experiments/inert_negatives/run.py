"""Run the whole study, or what is missing of it, and write its report.

python experiments/inert_negatives/run.py                            the whole study
python experiments/inert_negatives/run.py +experiment=demo_tiny      a test in a minute, with these settings instead
"""

import csv
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

from report import REWARDS, write_report

from grace_exp.config.compose import compose_config

HERE = Path(__file__).parent
BATCHES = 3


def main() -> None:
    """Probe, train, report."""
    own = not sys.argv[1:]
    overrides = sys.argv[1:] or ["+experiment=inert_negatives"]
    name = compose_config(overrides, Path("runs")).name
    results = HERE if own else Path("runs") / "inert_negatives_try"
    results.mkdir(parents=True, exist_ok=True)
    if not (results / "probe.csv").exists():
        from probe import probe

        rows = [asdict(row) for row in probe(overrides, REWARDS, BATCHES)]
        with (results / "probe.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    command = [sys.executable, "-m", "grace_exp", "-m", *overrides, "+sweep=inert_negatives", "logger=csv"]
    subprocess.run(command, check=True)
    write_report(results, Path("runs/sweeps") / f"{name}_inert_negatives")


if __name__ == "__main__":
    main()
