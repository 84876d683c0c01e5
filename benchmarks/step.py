"""One training step of GRACE beside TRL's GRPO: the same work, on one core, in CPU seconds and peak memory.

Both have SmolLM2-135M with the demo's adapters in float32, the same triplets, the same prompt tokens, one rationale for
each query and negative, rationales of the full length, the InfoNCE reward on pooled hidden states, and one update. TRL
gets the reward as a batched function. It runs in an environment of its own, which the first call makes. Its micro-batch
is all sequences or one group, whichever is faster in a first try. Sizes are texts x rationales.

python benchmarks/step.py                     (18 minutes on one quiet core; with --short two thirds of it)
python benchmarks/step.py --folder ~/trl      the folder of TRL's environment; it is made if missing
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from step_workers.turns import MARK

HERE = Path(__file__).parent
TRL = "1.16.0"
GRACE = {
    "GRACE": [],
    "GRACE, micro-batches of 512 tokens": ["hardware.train_tokens=512"],
    "GRACE, PyTorch's own matrix products": ["hardware.linear=torch"],
    "GRACE, no forward kept, micro-batches of 512 tokens": ["hardware.keep_forward=false", "hardware.train_tokens=512"],
}


SHORT = ("GRACE", "GRACE, micro-batches of 512 tokens")
"""Ways that are measured when time is short."""


class Worker:
    """A process that does one step per request."""

    def __init__(self, python: Path | str, script: str, settings: dict[str, Any], folder: Path) -> None:
        """Start the process; it reports its settings.

        Args:
            python: Interpreter of its environment.
            script: File in `step_workers/`.
            settings: Settings of its work.
            folder: Where the file of the settings is written.
        """
        path = folder / f"{script}-{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        if script.startswith("trl"):
            environment.pop("PYTHONPATH", None)
        self._log = path.with_suffix(".log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(HERE / "step_workers" / script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def step(self) -> dict[str, Any]:
        """Do one step in the process."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        self._process.wait()
        self._log.seek(0)
        sys.exit(f"{self._process.args} ended:\n{self._log.read()[-3000:]}")


def main() -> None:
    """Measure every size, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(tempfile.gettempdir()) / f"grace-exp-trl-{TRL}"
    parser.add_argument("--folder", type=Path, default=default, help=f"of TRL's environment (default: {default})")
    parser.add_argument("--pip-args", default="", help="for installing it, e.g. an index of CPU-only torch builds")
    parser.add_argument("--sizes", default="4x4,4x8", help="texts x rationales, with commas between")
    parser.add_argument("--tokens", type=int, default=32, help="of every rationale")
    parser.add_argument("--pairs", type=int, default=3, help="steps of every way, in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}, and one trial step of TRL each")
    parser.add_argument("--trl-micro-batch", type=int, help="rationales; not given: the faster of two")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "step.json")
    options = parser.parse_args()
    python = trl_environment(options.folder.expanduser(), options.pip_args)
    results = []
    for size in options.sizes.split(","):
        batch, group = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(batch, group, options, python, Path(folder)))
        show(results[-1])
    machine = {"cpu": cpu_name(), "python": platform.python_version(), "trl": TRL}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")


def trl_environment(folder: Path, pip_args: str) -> Path:
    """Return the Python of an environment with TRL and this project's versions of torch and transformers."""
    python = folder / "bin" / "python"
    made = folder / ".made"
    if not made.exists():
        Console().print(f"installing TRL {TRL} into {folder}: some minutes")
        venv.create(folder, with_pip=True)
        pins = HERE.parent / "constraints" / "cpu.txt"
        wanted = ["torch", "transformers", "peft", "accelerate", "datasets", f"trl=={TRL}"]
        command = [python, "-m", "pip", "install", "--quiet", *pip_args.split(), "-c", pins, *wanted]
        subprocess.run(list(map(str, command)), check=True)
        made.touch()
    return python


def measure(batch: int, group: int, options: argparse.Namespace, python: Path, folder: Path) -> dict[str, Any]:
    """Return the median figures of every way at one size."""
    base = {"batch": batch, "group": group, "tokens": options.tokens, "threads": options.threads}
    workers = {
        name: Worker(sys.executable, "grace_step.py", base | {"overrides": overrides}, folder)
        for name, overrides in GRACE.items()
        if name in SHORT or not options.short
    }
    facts = workers["GRACE"].facts
    work = {name: value for name, value in facts.items() if name != "settings"} | base | {"trl": {}}
    tried: dict[int, dict[str, Any]] = {}
    candidates = [options.trl_micro_batch] if options.trl_micro_batch else [batch * group, group]
    for micro_batch in candidates if len(candidates) > 1 else []:
        trial = Worker(python, "trl_step.py", work | {"micro_batch": micro_batch}, folder)
        for _ in range(1 if options.short else 2):
            tried[micro_batch] = trial.step()
        trial.end()
    chosen = min(tried, key=lambda size: tried[size]["cpu_seconds"]) if tried else candidates[0]
    trl = f"TRL {TRL}, micro-batches of {chosen} rationales"
    workers[trl] = Worker(python, "trl_step.py", work | {"micro_batch": chosen}, folder)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(options.pairs + 1):
        for name, worker in workers.items():
            row = worker.step()
            assert row["tokens"] == options.tokens, f"{name}: rationales of {row['tokens']} tokens"
            if turn:
                rows[name].append(row)
    settings = {name: worker.facts.get("settings") for name, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    return {
        "size": f"{batch} x {group}",
        "tokens": options.tokens,
        "threads": options.threads,
        "trl_tried": {str(size): row for size, row in tried.items()},
        "ways": {name: summary(found, rows[trl]) | {"settings": settings[name]} for name, found in rows.items()},
    }


def summary(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of a way, and of its pairs with TRL."""
    phases = dict.fromkeys(phase for row in rows for phase in row["phases"])
    return {
        "cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows),
        "all_cpu_seconds": [row["cpu_seconds"] for row in rows],
        "trl_over_this": statistics.median(
            other["cpu_seconds"] / row["cpu_seconds"] for row, other in zip(rows, others, strict=True)
        ),
        "peak_gib": max(row["peak_gib"] for row in rows),
        "phases": {phase: statistics.median(row["phases"].get(phase, 0.0) for row in rows) for phase in phases},
    }


def show(result: dict[str, Any]) -> None:
    """Print a size's table."""
    title = f"{result['size']} rationales of {result['tokens']} tokens, {result['threads']} thread: CPU seconds a step"
    table = Table(title=title, title_justify="left")
    for column in ("way", "median s", "TRL / this (median of pairs)", "peak GiB", "rollout", "score", "update"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in result["ways"].items():
        phases = [f"{row['phases'][one]:.1f}" if one in row["phases"] else "" for one in ("rollout", "score", "update")]
        figures = (f"{row['cpu_seconds']:.1f}", f"{row['trl_over_this']:.2f}", f"{row['peak_gib']:.2f}")
        table.add_row(name, *figures, *phases)
    Console(width=140).print(table)
    for size, row in result["trl_tried"].items():
        Console(width=140).print(
            f"TRL tried with micro-batches of {size}: {row['cpu_seconds']:.1f} s, {row['peak_gib']:.2f} GiB"
        )


def cpu_name() -> str:
    """Return the CPU's name as Linux gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
