"""Kills tiny runs at random moments, resumes each until it ends, and compares it with the undisturbed run.

    python scripts/chaos.py --runs 100 --seed 0                          # one kill per run
    python scripts/chaos.py --kills 100 --seed 0                         # also kills resumed runs
    python scripts/chaos.py --kinds "vllm server" vllm --only "killed engine" SIGKILL   # with vLLM installed

It prints a table and writes the cases as JSON. If the JSON file has runs of the same seed, it continues after them. It
exits with 1 if a run did not end, or did not equal the undisturbed run.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from grace_exp.tracking.metrics_csv import TIMED_PREFIXES
from grace_exp.training.model_card import without_times

COMMON = [
    "+experiment=demo_tiny",
    "hydra.run.dir=run",
    "job.steps=6",
    "hardware.threads=1",
    "rollout.group_size=3",
    "rollout.max_tokens=6",
    "callbacks.checkpoint.every_n_steps=2",
    "callbacks.progress=none",
    "evaluation=demo",
    "evaluation.minilm=false",
    "~evaluation.sets.stsb",
    "evaluation.sets.wordnet.size=12",
]
KINDS = {
    "full": ["callbacks.export=[merged]"],
    "lora": ["+backbone.lora.rank=4", "+backbone.lora.dropout=0.2", "callbacks.export=[merged,adapter]"],
    "two processes": [
        *("hardware.devices=2", "hardware.strategy=ddp", "+backbone.lora.rank=4"),
        *("objective.mini_batch_size=2", "callbacks.export=[merged]"),
    ],
    "vllm server": ["rollout=vllm_server", "callbacks.export=[merged]"],
    "written ahead": ["rollout=vllm_server", "rollout.overlap=one_step", "callbacks.export=[merged]"],
    "vllm": ["rollout=vllm", "callbacks.export=[merged]"],
}
WITH_SERVER = ("vllm server", "written ahead")
WITHOUT_VLLM = ("full", "lora", "two processes")
FORKED = ("full", "lora")
"""Run in a copy of this process, which has imported everything; the others start several processes themselves."""
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
PATIENCE = 240.0
MOST_RESUMES = 6


@dataclass
class Case:
    """One run and how it was disturbed."""

    kind: str
    disturbance: str
    kills: int = 0
    when: list[str] = field(default_factory=list)
    resumes: int = 0
    ended: bool = False
    differences: list[str] = field(default_factory=list)


class Run:
    """A run in a folder of its own, in a fork of this process, which has imported everything, or in new processes."""

    def __init__(self, place: Path, kind: str) -> None:
        """Set up without starting the run."""
        self.place = place
        self.folder = place / "run"
        self.kind = kind
        self.pid = 0
        self._code: int | None = None

    def start(self) -> None:
        """Start the run, or resume it if it has begun."""
        overrides = [*COMMON, *KINDS[self.kind]]
        if (self.folder / "config.yaml").is_file():
            overrides.append("job.resume=run")
        self._code = None
        self.pid = self._fork(overrides) if self.kind in FORKED else self._process(overrides)

    def _fork(self, overrides: Sequence[str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setpgid(0, 0)
            os.chdir(self.place)
            with (self.place / "output.log").open("ab", buffering=0) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.argv = ["grace-exp", *overrides]
            from grace_exp.__main__ import main

            code = 0
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            code = 70
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _process(self, overrides: Sequence[str]) -> int:
        with (self.place / "output.log").open("ab") as log:
            command = [sys.executable, "-m", "grace_exp", *overrides]
            self._popen = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, process_group=0, stdin=subprocess.DEVNULL
            )
        return self._popen.pid

    def ended(self) -> int | None:
        """Return the exit code; None while the run goes on."""
        if self._code is None:
            if self.kind not in FORKED:
                self._code = self._popen.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None if the run still goes on after `seconds`."""
        end = time.monotonic() + seconds
        while self.ended() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self._code

    def send(self, number: int) -> None:
        """Send a signal to all processes of the run, as a terminal or a batch system does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill all processes of the run."""
        self.send(signal.SIGKILL)
        self.wait(30)

    def stands(self) -> str:
        """Return how far the run has come."""
        checkpoints = sorted(path.name for path in (self.folder / "checkpoints").glob("step-*.ckpt"))
        if (self.folder / "end.json").is_file():
            return "in its end"
        if not checkpoints:
            return "before its first checkpoint"
        return "behind its last step" if checkpoints[-1] == "step-000006.ckpt" else "between checkpoints"


def same_file(found: Path, expected: Path) -> bool:
    """Return whether two exported files are equal byte for byte, except for the milliseconds in a model card."""
    if not found.is_file():
        return False
    if found.name != "README.md":
        return filecmp.cmp(found, expected, shallow=False)
    cards = [without_times(path.read_text(encoding="utf-8")) for path in (found, expected)]
    return cards[0] == cards[1]


def differences(found: Path, expected: Path) -> list[str]:
    """Return the differences between two run folders, except times and speeds."""
    names = []
    checkpoints = [folder / "checkpoints" / "step-000006.ckpt" for folder in (found, expected)]
    states = [torch.load(path, weights_only=True) for path in checkpoints]
    for part in ("state_dict", "optimizer_states"):
        try:
            torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
        except AssertionError:
            names.append(f"checkpoint: {part}")
    names += [f"checkpoint: {p}" for p in ("lr_schedulers", "GraceDataModule") if states[0][p] != states[1][p]]
    tables = [pd.read_csv(folder / "metrics.csv", dtype=str, keep_default_na=False) for folder in (found, expected)]
    plain = [table[[c for c in table if not c.startswith(TIMED_PREFIXES)]] for table in tables]
    if not plain[0].equals(plain[1]):
        names.append("metrics.csv")
    samples = [sorted((folder / "samples").glob("*.parquet")) for folder in (found, expected)]
    if [path.name for path in samples[0]] != [path.name for path in samples[1]] or not all(
        pd.read_parquet(a).equals(pd.read_parquet(b)) for a, b in zip(*samples, strict=True)
    ):
        names.append("samples")
    exports = sorted(path.relative_to(expected) for path in (expected / "export").rglob("*") if path.is_file())
    if exports != sorted(path.relative_to(found) for path in (found / "export").rglob("*") if path.is_file()):
        names.append("names of exported files")
    names += [f"export: {path}" for path in exports if not same_file(found / path, expected / path)]
    results = [json.loads((folder / "result.json").read_text())["figures"] for folder in (found, expected)]
    kept = [{k: v for k, v in figures.items() if not k.startswith(TIMED_PREFIXES)} for figures in results]
    if kept[0] != kept[1]:
        names.append("result.json")
    left = [str(path.relative_to(found)) for path in found.rglob(".*.tmp")]
    return names + [f"left behind: {name}" for name in left]


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """Mount a file system of this size at `place` (needs the right to mount)."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def may_mount() -> bool:
    """Return whether this user may mount."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", "1m"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def remount(place: Path, options: str) -> None:
    """Change the options of the file system at `place`. This fails while a file there is being written."""
    command = ["mount", "-o", f"remount,{options}", str(place)]
    end = time.monotonic() + 5
    while subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        if time.monotonic() > end:
            raise TimeoutError(f"{place} could not be remounted {options}")
        time.sleep(0.01)


def wait_for_moment(run: Run, draw: random.Random, seconds: float) -> None:
    """Wait for a random moment after the run's first checkpoint or, more rarely, of the whole run.

    A tiny run spends most of its time on imports and the model.
    """
    if draw.random() < 0.3:
        run.wait(draw.uniform(0, seconds))
        return
    end = time.monotonic() + PATIENCE
    while run.ended() is None and not any((run.folder / "checkpoints").glob("step-*")) and time.monotonic() < end:
        time.sleep(0.002)
    run.wait(draw.uniform(0, 0.15 * seconds))


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(child) for child in found.split()]


def engine_processes(pid: int) -> list[int]:
    """Those of the engine's server below a process: its guard, the server, and what it has started."""
    found = []
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"vllm" in Path(f"/proc/{child}/cmdline").read_bytes().lower():
                found.append(child)
        found += engine_processes(child)
    return found


def unexplained(run: Run, start: int) -> list[str]:
    """What is wrong with the last words of a run whose engine was killed: it names the cause, without a traceback."""
    said = (run.place / "output.log").read_text(errors="replace")[start:]
    last = [line for line in said.splitlines() if line.startswith("grace-exp: ")][-1:]
    if "Traceback (most recent call last)" in said:
        return ["a traceback", *last]
    return [] if last and run.ended() == 2 else [f"exit code {run.ended()} without a message"]


def kill(run: Run, case: Case, disturbance: str, draw: random.Random, seconds: float) -> None:
    """Wait for a moment, then disturb the run and wait for its end."""
    wait_for_moment(run, draw, seconds)
    if run.ended() is not None:
        return
    case.when.append(run.stands())
    if disturbance in SIGNALS:
        case.kills += 1
        run.send(SIGNALS[disturbance])
    else:
        engine = disturbance == "killed engine"
        there = engine_processes(run.pid) if engine else children(run.pid)
        victims = [draw.choice(there)] if engine and there else there[:1]
        case.kills += bool(victims)  # it may not have been started
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    log = run.place / "output.log"
    begin = len(log.read_text(errors="replace"))
    if run.wait(PATIENCE) is None:
        case.differences.append("it hung")
    elif disturbance == "killed engine" and run.ended() != 0:
        case.differences += unexplained(run, begin)
    run.end()


def disturbed(
    place: Path, kind: str, disturbance: str, draw: random.Random, seconds: float, whole: Path, again: float
) -> Case:
    """Disturb one run and compare it. `again` is the probability that the resumed run is killed too."""
    case, run = Case(kind, disturbance), Run(place, kind)
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if disturbance in ("disk full", "read-only folder"):
            full = disturbance == "disk full"
            # The run's log is open all the time, and no file system with such a file becomes read-only.
            disk = run.folder if full else run.folder / "checkpoints"
            stack.enter_context(small_disk(disk, f"{draw.randrange(300, 6000)}k" if full else "64m"))
            run.start()
            if disturbance == "read-only folder":
                wait_for_moment(run, draw, seconds)
                case.when.append(run.stands())
                remount(disk, "ro")
            case.kills += run.wait(PATIENCE) not in (0, None)
            run.end()
            remount(disk, "rw,size=64m")
        else:
            run.start()
            kill(run, case, disturbance, draw, seconds)
            while draw.random() < again and run.ended() != 0:
                case.resumes += 1
                run.start()
                kill(run, case, disturbance, draw, seconds)
        code = run.ended()
        for _ in range(MOST_RESUMES):
            if code == 0:
                break
            case.resumes += 1
            run.start()
            code = run.wait(PATIENCE)
            run.end()
        case.ended = code == 0 and (run.folder / "result.json").is_file()
        if case.ended:
            case.differences += differences(run.folder, whole)
        else:
            log = (place / "output.log").read_text(errors="replace").splitlines()
            case.differences += ["did not end", *log[-6:]]
    return case


def undisturbed(place: Path, kind: str) -> tuple[Path, float]:
    """Return the folder of an undisturbed run, and its seconds."""
    for _ in range(2):  # the first one fills the cache of prepared data
        run = Run(place, kind)
        subprocess.run(["rm", "-rf", str(place)], check=True)
        place.mkdir(parents=True)
        start = time.monotonic()
        run.start()
        if run.wait(PATIENCE) != 0:
            raise SystemExit(f"the undisturbed run failed: {place / 'output.log'}")
    return run.folder, time.monotonic() - start


def chosen(disturbances: Sequence[str], kinds: Sequence[str], draw: random.Random) -> tuple[str, str]:
    """Choose a disturbance and a kind of run that fit together; kills are likelier than the rest."""
    weights = [4 if name in SIGNALS else 1 for name in disturbances]
    (disturbance,) = draw.choices(disturbances, weights)
    if disturbance == "killed rank":
        return disturbance, "two processes"
    if disturbance == "killed engine":
        kinds = [kind for kind in kinds if kind in WITH_SERVER]
    return disturbance, draw.choices(kinds, [5 if kind in FORKED else 1 for kind in kinds])[0]


def table(cases: Sequence[Case]) -> str:
    """Return a Markdown table with one row per disturbance."""
    rows = ["| disturbance | runs | kills | ended | identical |", "|---|---|---|---|---|"]
    groups = {name: [case for case in cases if case.disturbance == name] for name in {c.disturbance: 0 for c in cases}}
    for name, some in [*sorted(groups.items()), ("all", list(cases))]:
        figures = (
            len(some),
            sum(case.kills for case in some),
            sum(case.ended for case in some),
            sum(case.ended and not case.differences for case in some),
        )
        rows.append(f"| {name} | " + " | ".join(map(str, figures)) + " |")
    moments = [moment for case in cases for moment in case.when]
    rows += ["", "Moments: " + ", ".join(f"{moments.count(name)} {name}" for name in dict.fromkeys(moments))]
    return "\n".join(rows)


def options_given() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--kills", type=int, default=20, help="go on until so many were made")
    how_many.add_argument("--runs", type=int, help="go on until so many runs were killed, each once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after these, whatever was done")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(WITHOUT_VLLM))
    parser.add_argument("--only", nargs="+", help="disturbances; default: all that this machine and --kinds allow")
    parser.add_argument("--json", type=Path, help="where the cases go, and come from")
    parser.add_argument("--place", type=Path, help="work here and keep everything; default: a temporary folder")
    options = parser.parse_args()
    options.disturbances = options.only or [
        *SIGNALS,
        *(["disk full", "read-only folder"] if may_mount() else []),
        *(["killed rank"] if "two processes" in options.kinds else []),
        *(["killed engine"] if set(WITH_SERVER) & set(options.kinds) else []),
    ]
    return options


def earlier(options: argparse.Namespace) -> list[Case]:
    """Return the cases in the file that `--json` names."""
    if options.json is None or not options.json.is_file():
        return []
    record = json.loads(options.json.read_text())
    if record["seed"] != options.seed:
        raise SystemExit(f"{options.json} holds runs of --seed {record['seed']}: give that seed, or another file")
    return [Case(**case) for case in record["cases"]]


def main() -> int:
    """Run the command."""
    options = options_given()
    import grace_exp.__main__
    import grace_exp.jobs.train  # noqa: F401 - once for all runs

    with tempfile.TemporaryDirectory() as temporary:
        place = (options.place or Path(temporary)).resolve()
        os.environ.setdefault("GRACE_EXP_CACHE", str(place / "cache"))
        os.environ.setdefault("WANDB_MODE", "offline")
        wholes: dict[str, tuple[Path, float]] = {}
        cases, start = earlier(options), time.monotonic()

        def enough() -> bool:
            if options.runs is not None:
                return sum(case.kills > 0 for case in cases) >= options.runs
            return sum(case.kills for case in cases) >= options.kills

        while not enough() and time.monotonic() - start < 60 * options.minutes:
            draw = random.Random(f"{options.seed} {len(cases)}")
            disturbance, kind = chosen(options.disturbances, options.kinds, draw)
            if kind not in wholes:
                wholes[kind] = undisturbed(place / f"undisturbed-{kind}".replace(" ", "-"), kind)
            whole, seconds = wholes[kind]
            again = 0.3 if options.runs is None else 0.0
            case = disturbed(place / f"run-{len(cases):03d}", kind, disturbance, draw, seconds, whole, again)
            cases.append(case)
            sys.stdout.write(f"{len(cases):3d} {kind:14s} {disturbance:17s} {case.when} {case.differences or 'ok'}\n")
            sys.stdout.flush()
            if options.json:
                record: dict[str, Any] = {"seed": options.seed, "cases": [vars(case) for case in cases]}
                options.json.write_text(json.dumps(record, indent=1))
        sys.stdout.write(f"\n{table([case for case in cases if case.kills])}\n\n")
        unmet = [case for case in cases if not case.kills]
        same = sum(case.ended and not case.differences for case in unmet)
        sys.stdout.write(f"{len(unmet)} more runs had ended before their kill came, {same} of them identical.\n")
        sys.stdout.write(f"{time.monotonic() - start:.0f} s\n")
    return int(any(case.differences or not case.ended for case in cases))


if __name__ == "__main__":
    sys.exit(main())
