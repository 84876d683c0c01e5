"""Whole runs from the command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ARGUMENTS = ["+experiment=demo_tiny", "callbacks.progress=lines", "callbacks.export=[]", "rollout.vllm.probe=true"]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "grace_exp", *ARGUMENTS, f"hydra.run.dir={folder}", *arguments]
    environment = {**os.environ, "GRACE_EXP_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def rewards(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["reward/total/mean"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_processes_train_as_one_with_an_engine_each_or_one_together(
    tmp_path: Path, tensor_parallel: int, reward_of_run: Callable[[str, int], list[float]]
) -> None:
    run = start(
        tmp_path,
        "rollout=vllm",
        "hardware.devices=2",
        "hardware.strategy=ddp",
        "job.steps=3",
        f"rollout.vllm.tensor_parallel={tensor_parallel}",
    )
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert rewards(tmp_path) == pytest.approx(reward_of_run("vllm", 0)[:3], abs=1e-4)


def test_no_server_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    run = start(tmp_path, "rollout=vllm_server", "job.steps=1000")
    assert run.stdout is not None
    output = ""
    while "step 2/" not in output:
        line = run.stdout.readline()
        assert line, output
        output += line
    mine = [pid for pid in _descendants(run.pid) if "vllm" in _command(pid)]
    assert len(mine) >= 3  # guard, server, engine
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 40
    while (left := [pid for pid in mine if "vllm" in _command(pid).lower()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def _command(pid: int) -> str:
    """Return a process's command; empty if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
