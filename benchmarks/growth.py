"""Cost of a step by K, batch, rationale length and number of processes: SmolLM2, LoRA, the demo's settings.

Each series changes one setting, starting from 4 instances, K = 4 and 16 tokens. Every point is a run of three steps
in a process of its own. The first step does not count. Seconds are CPU seconds of one process with one thread, so
that other programs disturb little. With two processes they are those of the first. The exponent is that of the power
law between the first and the last point: it is 1 if twice as much takes twice as long.

python benchmarks/growth.py              (15 minutes of CPU)
python benchmarks/growth.py --quick      (7 minutes: two points of each)
python benchmarks/growth.py --quick --experiment demo_tiny --out /tmp/growth      (tries the script)
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import common  # noqa: F401 - first of all: it looks at OpenMP, as `python -m grace_exp` does
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
BASE = {"K": 4, "batch": 4, "length": 16, "processes": 1}
POINTS = {"K": (2, 4, 8, 16), "batch": (2, 4, 8, 16), "length": (8, 16, 32, 64), "processes": (1, 2)}
PHASES = ("rollout", "score", "reward", "update", "sync")
_STEPS = 3


def main() -> None:
    """Measure every point, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first and the last but one of each")
    parser.add_argument("--experiment", default="demo_paper", help="whose model, texts and reward")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of growth.json and growth.svg")
    parser.add_argument("--run", nargs=4, type=int, metavar=tuple(BASE), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        return _run(options.experiment, dict(zip(BASE, options.run, strict=True)))
    measured: dict[tuple[int, ...], dict[str, float]] = {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, values in POINTS.items():
        chosen = (values[0], values[-2]) if options.quick and len(values) > 2 else values
        for value in chosen:
            point = tuple((BASE | {name: value}).values())
            if point not in measured:
                measured[point] = _measured(options.experiment, point)
            found.setdefault(name, {})[value] = measured[point]
    _print(found)
    options.out.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    record = {"command": command, "base": BASE, "points": found}
    (options.out / "growth.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _plot(found, options.out / "growth.svg")
    return None


def _measured(experiment: str, point: tuple[int, ...]) -> dict[str, float]:
    """Return the medians of a run in a process of its own."""
    command = [sys.executable, __file__, "--experiment", experiment, "--run", *map(str, point)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    names = ("time/step", *(f"time/{phase}" for phase in PHASES), "rollout/tokens", "perf/memory_peak_gib")
    return {name: statistics.median(row[name] for row in rows) for name in names}


def _run(experiment: str, point: dict[str, int]) -> None:
    """Train in this process (and, with two, in a child of it); the last line printed has the steps' metrics."""
    from grace_exp.config.compose import compose_config
    from grace_exp.jobs.train import train
    from grace_exp.tracking import summary

    summary.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    batch, k, processes = point["batch"], point["K"], point["processes"]
    settings = [f"job.steps={_STEPS}", f"job.batch_size={batch}", f"objective.mini_batch_size={batch}"]
    settings += [f"rollout.group_size={k}", f"rollout.max_tokens={point['length']}", f"hardware.devices={processes}"]
    settings += [f"hardware.strategy={'auto' if processes == 1 else 'ddp'}", "hardware.threads=1", "evaluation=none"]
    settings += ["callbacks.progress=none", "callbacks.export=[]", "callbacks.report=false", "callbacks.watchdog=null"]
    settings += ["callbacks.checkpoint.every_n_steps=0", "logger.samples_every_n_steps=0", "logger=csv"]
    settings += ["logger.evolution_every_n_steps=0"]
    with tempfile.TemporaryDirectory(prefix="grace-exp-growth-") as folder:
        train(compose_config([f"+experiment={experiment}", *settings], Path(folder) / "run"))
        path = Path(folder) / "run" / "metrics.csv"
        if path.is_file():  # of the first process
            with path.open(encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            print(json.dumps(rows[1:]))


def _exponent(points: dict[int, dict[str, float]], name: str) -> float:
    (first, before), *_, (last, after) = points.items()
    return math.log(after[name] / before[name]) / math.log(last / first)


def _print(found: dict[str, dict[int, dict[str, float]]]) -> None:
    title = "4 instances, K = 4, 16 tokens, one process, and what is said; CPU seconds of one thread"
    table = Table(title=title, title_justify="left")
    for column in ("", "step", *PHASES, "tokens", "GiB", "ms a token"):
        table.add_column(column, justify="right" if column else "left")
    for name, points in found.items():
        for value, row in points.items():
            phases = [f"{row[f'time/{phase}']:.2f}" for phase in ("step", *PHASES)]
            milliseconds = 1e3 * row["time/step"] / row["rollout/tokens"]
            size = f"{row['perf/memory_peak_gib']:.2f}"
            table.add_row(f"{name} {value}", *phases, f"{row['rollout/tokens']:.0f}", size, f"{milliseconds:.1f}")
        shown = [f"{_exponent(points, f'time/{phase}'):.2f}" for phase in ("step", "rollout", "score")]
        table.add_row("  exponent", *shown, "", f"{_exponent(points, 'time/update'):.2f}", "", "", "", "")
        table.add_section()
    Console(width=130).print(table)


def _plot(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "grace-exp"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3 * len(found), 3), layout="constrained", squeeze=False)
    for axis, (name, points) in zip(axes[0], found.items(), strict=True):
        for phase in ("step", "rollout", "score", "update"):
            axis.plot(list(points), [row[f"time/{phase}"] for row in points.values()], marker="o", label=phase)
        axis.set(xscale="log", yscale="log", xlabel=name, xticks=list(points), xticklabels=list(points))
        axis.minorticks_off()
    axes[0][0].set_ylabel("CPU seconds a step")
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
