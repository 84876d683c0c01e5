"""Run the study, or what is missing of it, and write its tables.

python experiments/exact_gradient/run.py --jobs 2                          everything, stage by stage
python experiments/exact_gradient/run.py --jobs 2 --stages supervised      the first stage alone
python experiments/exact_gradient/run.py --jobs 2 --offline-study          also measures every run on offline_study
python experiments/exact_gradient/run.py --collect                         run nothing: tables of what has been run
python experiments/exact_gradient/run.py backbone=tiny job.steps=1         a try, in runs/exact_gradient_try
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

from report import write_report
from stages import STAGES, Row, Stage, folder_of, items_of, tasks

HERE = Path(__file__).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
COMMON = (
    "logger=csv",
    "callbacks.export=[]",
    "callbacks.progress=lines",
    "evaluation.before=false",  # the same for all runs: the demo's
    "evaluation.minilm=false",
    "hardware.threads=1",  # as many runs side by side as --jobs says; another number rounds differently
)


def main() -> None:
    """Train, collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in STAGES]
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one CPU thread each")
    parser.add_argument("--stages", default=",".join(names), help="of " + ",".join(names))
    parser.add_argument("--seeds", help="only these, as 0,1")
    parser.add_argument("--offline-study", action="store_true", help="measure every run, by vLLM where it is installed")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("overrides", nargs="*", help="settings for all runs: a try")
    arguments = parser.parse_args()
    chosen = tuple(arguments.stages.split(","))
    if unknown := set(chosen) - set(names):
        parser.error(f"--stages {','.join(sorted(unknown))}: choose of {', '.join(names)}")
    extra = tuple(arguments.overrides)
    runs = Path("runs") / ("exact_gradient_try" if extra else "exact_gradient")
    wanted = None if arguments.seeds is None else {int(seed) for seed in arguments.seeds.split(",")}
    todo = [task for task in tasks(chosen) if wanted is None or task[2] in wanted]
    failed: list[str] = []
    if not arguments.collect:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(partial(run_one, runs, extra), todo))
            if arguments.offline_study:
                results += pool.map(partial(measure_one, runs, extra), todo)
            failed = [name for name in results if name is not None]
    write_report(runs, runs if extra else HERE)
    if failed:
        sys.exit("failed, see run.log in: " + ", ".join(failed))


def run_one(runs: Path, extra: tuple[str, ...], task: tuple[Stage, Row, int]) -> str | None:
    """Train one row with one seed, unless that has been done; go on with a run that was interrupted.

    Returns:
        The run folder, if it failed.
    """
    stage, row, seed = task
    folder = folder_of(runs, stage, row, seed)
    if (folder / "summary.json").is_file():
        return None
    overrides = [
        *_settings(stage, row, seed),
        f"hydra.run.dir={folder}",
        *extra,
    ]
    if any((folder / "checkpoints").glob("step-*.ckpt")):
        overrides.append(f"job.resume={folder}")
    return None if _run(f"{stage.name}: {row.name}, seed {seed}", folder, overrides) else str(folder)


def measure_one(runs: Path, extra: tuple[str, ...], task: tuple[Stage, Row, int]) -> str | None:
    """Measure a trained row on `evaluation=offline_study` in its own mode, unless that has been done.

    Returns:
        The folder of the evaluation, if it failed.
    """
    stage, row, seed = task
    trained = folder_of(runs, stage, row, seed)
    folder = trained / "offline_study"
    if items_of(trained).is_file() or not (trained / "summary.json").is_file():
        return None
    vllm = importlib.util.find_spec("vllm") is not None
    overrides = [
        *_settings(stage, row, seed),
        "job=evaluate",
        "evaluation=offline_study",
        f"job.resume={trained}",
        f"job.encode.mode={row.mode}",
        f"hydra.run.dir={folder}",
        *(["rollout=vllm"] if vllm else []),
        *extra,
    ]
    return None if _run(f"{stage.name}: {row.name}, seed {seed}, offline_study", folder, overrides) else str(folder)


def _settings(stage: Stage, row: Row, seed: int) -> list[str]:
    """Return the settings that a row is trained and measured with."""
    return [f"+experiment={row.experiment}", *COMMON, *stage.overrides, *row.overrides, f"seed={seed}"]


def _run(title: str, folder: Path, overrides: list[str]) -> bool:
    """Run the program, what it prints in the folder's `run.log`; whether it ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(title + "\n")
    sys.stdout.flush()
    with (folder / "run.log").open("a") as log:
        command = [sys.executable, "-m", "grace_exp", *overrides]
        log.write(" ".join(command[1:]) + "\n")
        log.flush()
        return (
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=ONE_THREAD, check=False).returncode == 0
        )


if __name__ == "__main__":
    main()
