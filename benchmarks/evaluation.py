"""Time of job=evaluate evaluation=offline_small with SmolLM2, with and without one pass.

    python benchmarks/evaluation.py                 # a pair: 6 minutes on 2 quiet cores
    python benchmarks/evaluation.py --before        # also the former way: two passes of 32 texts (4 more minutes)
    python benchmarks/evaluation.py --engine vllm   # where vLLM is installed

Every run starts with an empty cache of embeddings and results. Model and data are on the disk. The script prints a
table of medians and writes benchmarks/results/evaluation.json, with every task's score by either way.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import paired
from paired import Cost

from grace_exp.config.compose import compose_config

BEFORE, TWO, ONE = "before: two passes, 32 texts at a time", "two passes", "one pass"
WAYS = {
    BEFORE: ["hardware.one_pass=false", "job.encode.batch_size=32"],
    TWO: ["hardware.one_pass=false"],
    ONE: ["hardware.one_pass=true"],
}
COMPUTED = ("embeddings", "mteb")
"""What a cache folder holds of earlier runs' work; all else is model and data."""


def main() -> None:
    """Run the job by every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="pairs")
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    options = parser.parse_args()
    job = ["job=evaluate", "evaluation=offline_small", "backbone=smollm2", f"rollout={options.engine}"]
    cache = Path(compose_config(job, Path("runs/benchmark")).cache_dir).expanduser()
    scores: dict[str, dict[str, float]] = {}
    ways: dict[str, Callable[[], Cost]] = {
        name: partial(run, [*job, *settings], cache, scores.setdefault(name, {}))
        for name, settings in WAYS.items()
        if name != BEFORE or options.before
    }
    costs = paired.take_turns(ways, options.repeats, warm_up=False)
    found = paired.summary(costs)
    paired.show(f"offline_small, SmolLM2, {options.engine}", found)
    worst = max(abs(scores[ONE][task] - score) for task, score in scores[TWO].items())
    print(f"largest difference of a task's score between one pass and two: {worst:.4f} of 100")
    name = "evaluation" if options.engine == "transformers" else f"evaluation_{options.engine}"
    paired.write(name, {"ways": found, "scores": scores, "largest_score_difference": worst})


def run(job: list[str], cache: Path, scores: dict[str, float]) -> Cost:
    """Run the command once and put its scores into `scores`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        for entry in cache.iterdir():
            if entry.name not in COMPUTED:
                (folder / "cache" / entry.name).symlink_to(entry.resolve())
        command = [sys.executable, "-m", "grace_exp", *job]
        command += [f"cache_dir={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}", "logger=csv"]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=os.environ, check=False)
        if done.returncode:
            sys.exit(f"the job failed with {done.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        with (folder / "run" / "evaluation" / "offline_small.csv").open(encoding="utf-8", newline="") as file:
            scores |= {row["task"]: float(row["score"]) for row in csv.DictReader(file) if row["score"]}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - start, cpu)


if __name__ == "__main__":
    main()
