"""Time of a step with `rollout.overlap=one_step`: vLLM's server on one core, the trainer on another; SmolLM2.

Two runs have the demo's model and texts, one with overlap and one without. Figures are medians over the steps of a run
without its first two. `step / sum` is the wall time of a step over the sum of its phases: 1 if nothing overlaps, 0.5 at
best.

.venv-vllm/bin/python benchmarks/overlap.py                              (10 minutes on 2 cores)
.venv-vllm/bin/python benchmarks/overlap.py --only one_step --steps 6    (half of it)
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import demo_config  # noqa: F401 - first of all: it looks at OpenMP, as `python -m grace_exp` does
from rich.console import Console
from rich.table import Table

PHASES = ("rollout", "score", "reward", "update", "sync")
RESULT = Path(__file__).parent / "results" / "overlap.json"
_WARM_UP = 2


def main() -> None:
    """Measure both, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help=f"of each run, the first {_WARM_UP} of which do not count")
    parser.add_argument("--batch", type=int, default=4, help="instances a step")
    parser.add_argument("--group", type=int, default=8, help="K")
    parser.add_argument("--tokens", type=int, default=32, help="longest rationale")
    parser.add_argument("--cores", type=int, nargs=2, default=None, help="of the server and of the trainer")
    parser.add_argument("--only", choices=("none", "one_step"), help="one of the two runs")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = options.cores or sorted(os.sched_getaffinity(0))[:2]
    settings = [
        f"job.steps={options.steps}",
        f"job.batch_size={options.batch}",
        f"objective.mini_batch_size={options.batch}",
        f"rollout.group_size={options.group}",
        f"rollout.max_tokens={options.tokens}",
    ]
    if options.run is not None:
        return _run(options.run, settings, cores)
    if len(cores) < 2:
        sys.exit("benchmarks/overlap.py: the server and the trainer need a core each")
    ways = ("none", "one_step") if options.only is None else (options.only,)
    found = {way: _measured(way) for way in ways}
    _print(found, options, cores)
    earlier = json.loads(RESULT.read_text(encoding="utf-8"))["medians"] if RESULT.is_file() and options.only else {}
    record = {
        "command": "python benchmarks/overlap.py " + " ".join(sys.argv[1:]),
        "settings": settings,
        "medians": earlier | found,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return None


def _measured(way: str) -> dict[str, float]:
    """Return the medians of the seconds of a run in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", way]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    names = ("step", *PHASES, "wait")
    figures = {name: statistics.median(row.get(f"time/{name}", 0.0) for row in rows) for name in names}
    sums = [sum(row[f"time/{phase}"] for phase in PHASES) for row in rows]
    figures["sum of phases"] = statistics.median(sums)
    figures["step / sum"] = statistics.median(row["time/step"] / phases for row, phases in zip(rows, sums, strict=True))
    figures["tokens a step"] = statistics.median(row["rollout/tokens"] for row in rows)
    return figures


def _run(overlap: str, settings: list[str], cores: list[int]) -> None:
    """Train in this process, with the server on the first core; the last line printed has the steps' metrics."""
    from grace_exp.config.compose import compose_config
    from grace_exp.jobs import assemble
    from grace_exp.jobs.train import train

    build, server, trainer = assemble.build_engine, *cores

    def pinned(*arguments: Any, **options: Any) -> Any:
        os.sched_setaffinity(0, {server})  # what is started from here on stays there
        try:
            return build(*arguments, **options)
        finally:
            os.sched_setaffinity(0, {trainer})

    assemble.build_engine = pinned
    os.sched_setaffinity(0, {trainer})
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="grace-exp-overlap-") as folder:
        quiet = ["callbacks.progress=none", "callbacks.export=[]", "callbacks.report=false", "callbacks.watchdog=null"]
        quiet += ["callbacks.checkpoint.every_n_steps=0", "logger.samples_every_n_steps=0", "evaluation=none"]
        quiet += ["logger.evolution_every_n_steps=0", "hardware.threads=1"]
        ways = ["rollout=vllm_server", f"rollout.overlap={overlap}", "objective.importance.mode=token"]
        train(compose_config(["+experiment=demo_paper", *quiet, *ways, *settings], Path(folder) / "run"))
        with (Path(folder) / "run" / "metrics.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    print(json.dumps(rows[_WARM_UP:]))


def _print(found: dict[str, dict[str, float]], options: argparse.Namespace, cores: list[int]) -> None:
    title = (
        f"{options.batch} instances x K = {options.group}, {options.tokens} tokens at most; server on core {cores[0]}, "
        f"trainer on core {cores[1]}; medians, seconds"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("rollout.overlap")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    for way, figures in found.items():
        table.add_row(way, *(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in figures.values()))
    Console(width=150).print(table)
    if len(found) == 2:
        gain = found["none"]["step"] / found["one_step"]["step"]
        Console(width=150).print(f"a step with overlap is {gain:.2f} times as fast", highlight=False)


if __name__ == "__main__":
    main()
