"""The checks of list C, which need two GPUs."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from check_report import Figure, Skip
from command_checks import METRICS, command, finished, largest_difference

SETTINGS = ["job.steps=2", "objective.mini_batch_size=4"]


def _need_two() -> None:
    if torch.cuda.device_count() < 2:
        raise Skip(f"needs two GPUs: there are {torch.cuda.device_count()}")


def _shared(strategy: str, *overrides: str) -> list[str]:
    return [*SETTINGS, "hardware.devices=2", f"hardware.strategy={strategy}", *overrides]


def same_rewards(strategy: str, *overrides: str) -> list[Figure]:
    """Check that two GPUs give the metrics of one."""
    _need_two()
    one, two = finished([*SETTINGS, *overrides]), finished(_shared(strategy, *overrides))
    # The bf16 logits differ slightly, so a few sampled tokens differ.
    return [Figure("largest difference of metrics", largest_difference(one, two, METRICS[:2]), "", high=0.05)]


def no_orphans() -> list[Figure]:
    """Check that the other processes end when rank 0 is killed."""
    _need_two()
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    process = subprocess.Popen(
        command(*_shared("ddp"), "job.steps=200", f"hydra.run.dir={folder}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while process.poll() is None and not (folder / "metrics.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    while _group_lives(process.pid) and time.monotonic() - start < 120:
        time.sleep(0.2)
    left = time.monotonic() - start
    if _group_lives(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    return [Figure("seconds until no process was left", left, "s", high=30.0)]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def server() -> list[Figure]:
    """Check that a server on the second GPU writes and gets weights by NCCL."""
    _need_two()
    from engine_checks import missing

    if why := missing():
        raise Skip(why)
    finished([*SETTINGS, "rollout=vllm_server", 'rollout.vllm.server.devices="1"', "rollout.vllm.probe=true"])
    return [Figure("two steps with a server", 1, "", 1, 1)]
