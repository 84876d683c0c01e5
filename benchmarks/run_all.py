"""Every benchmark with short settings, one after another: under 40 minutes on two cores that do nothing else.

python benchmarks/run_all.py                          all that need no vLLM
python benchmarks/run_all.py --only step growth       some of them
python benchmarks/run_all.py --vllm-python .venv-vllm/bin/python      all: what `make bench` runs

What each prints goes to the terminal and to benchmarks/results/<name>.txt; minutes to benchmarks/results/run_all.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from step import cpu_name

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS: dict[str, list[str]] = {
    "step": ["--short"],
    "evaluation": [],
    "overlap": ["--steps", "6"],
    "growth": ["--quick"],
    "start": ["--repeats", "2"],
    "prepare_data": ["--triplets", "200000"],
    "one_pass": ["--texts", "24", "--repeats", "3"],
    "forward": ["--repeats", "3"],
    "rollout": ["--repeats", "2"],
    "serving": ["--requests", "64", "--clients", "16", "--", "+experiment=demo", "job.encode.max_tokens=32"],
    "scale": [],
}
"""By file, the arguments that keep it short."""
NEEDS_VLLM = ("overlap",)


def main() -> None:
    """Run them, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    parser.add_argument("--vllm-python", type=Path, help="of an environment with vLLM's CPU build (make venv-vllm)")
    parser.add_argument("--pip-args", default="", help="for the environment of benchmarks/step.py's peer")
    options = parser.parse_args()
    missing = sorted({path.stem for path in HERE.glob("*.py") if "__main__" in path.read_text()} - {*RUNS, "run_all"})
    assert not missing, f"RUNS in {__file__} lacks {', '.join(missing)}"
    RESULTS.mkdir(exist_ok=True)
    rows: dict[str, dict[str, float | int | None]] = {}
    for name in options.only:
        arguments = RUNS[name] + ([f"--pip-args={options.pip_args}"] if name == "step" and options.pip_args else [])
        python = options.vllm_python if name in NEEDS_VLLM else Path(sys.executable)
        if python is None or not python.exists():
            Console().print(
                f"{name} is left out: it needs vLLM; make venv-vllm, then --vllm-python .venv-vllm/bin/python"
            )
            rows[name] = {"minutes": None, "code": None}
            continue
        rows[name] = _run(name, [str(python), str(HERE / f"{name}.py"), *arguments])
    _show(rows)
    record = {"machine": cpu_name(), "python": platform.python_version(), "runs": rows}
    (RESULTS / "run_all.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if failed := [name for name, row in rows.items() if row["code"]]:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(name: str, command: list[str]) -> dict[str, float | int | None]:
    """One benchmark, its output shown and kept."""
    Console().rule(" ".join([f"benchmarks/{name}.py", *command[2:]]))
    begin = time.monotonic()
    with (
        (RESULTS / f"{name}.txt").open("w", encoding="utf-8") as kept,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.write(line)
    return {"minutes": (time.monotonic() - begin) / 60, "code": process.returncode}


def _show(rows: dict[str, dict[str, float | int | None]]) -> None:
    table = Table(title="minutes", title_justify="left")
    table.add_column("benchmark")
    table.add_column("minutes", justify="right")
    table.add_column("exit", justify="right")
    for name, row in rows.items():
        minutes = "left out" if row["minutes"] is None else f"{row['minutes']:.1f}"
        table.add_row(name, minutes, "" if row["code"] is None else str(row["code"]))
    table.add_row("all", f"{sum(row['minutes'] or 0 for row in rows.values()):.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
