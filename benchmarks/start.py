"""Start time of a run: imports, the tiny run, a sweep of 25 tiny jobs (6 minutes on 2 cores).

python benchmarks/start.py [--repeats 3] [--fresh]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "start.json"
GRACE = [sys.executable, "-m", "grace_exp"]
TINY = "+experiment=demo_tiny"
SWEEP = [*GRACE, "-m", TINY, "+sweep=reward_weights"]
BESIDE = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
WAYS = {
    "import torch, transformers, lightning": [sys.executable, "-c", "import torch, transformers, lightning.pytorch"],
    "--cfg job": [*GRACE, TINY, "--cfg", "job"],
    "tiny run": [*GRACE, TINY],
    "sweep of 25": SWEEP,
    "sweep of 25, 2 at a time": [*SWEEP, *BESIDE],
}
FRESH = {"sweep of 25, every job imports": [*SWEEP, "hydra.callbacks.sweep.warm=false"]}


def measured(command: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command and its child processes, in an empty folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=place, env=environment, capture_output=True, check=True)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure every way `repeats` times in turn, and sweeps once. Print the medians and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="also a sweep without the warm process")
    arguments = parser.parse_args()
    ways = WAYS | (FRESH if arguments.fresh else {})
    measured(WAYS["tiny run"])  # fills the caches of the system and of grace-exp
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(arguments.repeats):
        for name, command in ways.items():
            if not name.startswith("sweep") or repeat == 0:
                found[name].append(measured(command))
    table = Table(title="Start", title_justify="left")
    for column in ("", "wall s", "CPU s", "runs"):
        table.add_column(column, justify="right" if column else "left")
    medians = {}
    for name, runs in found.items():
        wall, cpu = (round(statistics.median(values), 2) for values in zip(*runs, strict=True))
        medians[name] = {"wall_s": wall, "cpu_s": cpu, "runs": [[round(a, 2), round(b, 2)] for a, b in runs]}
        table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}", str(len(runs)))
    Console(width=100).print(table)
    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), **packages}
    RESULTS.write_text(json.dumps({"machine": machine, "medians": medians}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
