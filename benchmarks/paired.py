"""Paired timing: ways to do the same work take turns; medians of seconds and CPU seconds, and ratios of pairs."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """Cost of one run: wall seconds, and CPU seconds of all cores."""

    seconds: float
    cpu_seconds: float


def in_process(function: Callable[[], object]) -> Callable[[], Cost]:
    """Measure a function in this process."""

    def run() -> Cost:
        start, cpu = time.perf_counter(), time.process_time()
        function()
        return Cost(time.perf_counter() - start, time.process_time() - cpu)

    return run


def take_turns(ways: Mapping[str, Callable[[], Cost]], repeats: int, *, warm_up: bool) -> dict[str, list[Cost]]:
    """Run every way `repeats` times in turn, after one round that is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(repeats + warm_up):
        for name, way in ways.items():
            cost = way()
            if number >= warm_up:
                costs[name].append(cost)
    return costs


def summary(costs: Mapping[str, Sequence[Cost]]) -> dict[str, dict[str, Any]]:
    """Return by way: medians, the ratio of the first way's time to this one (median of pairs), and every run."""
    first = next(iter(costs.values()))
    found: dict[str, dict[str, Any]] = {}
    for name, runs in costs.items():
        found[name] = {
            "seconds": statistics.median(run.seconds for run in runs),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in runs),
            "first_over_this": statistics.median(a.seconds / b.seconds for a, b in zip(first, runs, strict=True)),
            "first_over_this_cpu": statistics.median(
                a.cpu_seconds / b.cpu_seconds for a, b in zip(first, runs, strict=True)
            ),
            "runs": [vars(run) for run in runs],
        }
    return found


def show(title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a summary as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("way", "s", "CPU s", "first / this", "first / this, CPU"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in found.items():
        figures = [row["seconds"], row["cpu_seconds"], row["first_over_this"], row["first_over_this_cpu"]]
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    Console(width=120).print(table)


def earlier(name: str) -> dict[str, Any]:
    """Return what `results/<name>.json` holds; empty if there is no such file."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write `results/<name>.json`, with the machine."""
    import torch

    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **result}, indent=1), encoding="utf-8")
    print(f"written: {path}")
    return path
