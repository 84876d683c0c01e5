"""Separate GPUs for each of a sweep's jobs that run side by side on one machine."""

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grace_exp.config.root import GraceConfig

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class OwnGpus:
    """The GPUs of a job's process.

    Attributes:
        environment: Variables that show it only its own GPUs; empty if none were chosen.
        locks: Files that it holds open while it lives; no other job gets its GPUs until then.
    """

    environment: dict[str, str]
    locks: tuple[int, ...] = ()


def wanted_gpus(config: GraceConfig) -> int:
    """Return how many GPUs a job uses on this machine, including those of its own vLLM server."""
    if config.hardware.accelerator != "gpu" or config.job.name in ("prepare_data", "clear_cache"):
        return 0
    server = config.rollout.vllm.server
    of_server = server.device_numbers if config.rollout.engine == "vllm_server" and server.url is None else ()
    return max([config.hardware.devices, *(number + 1 for number in of_server)])


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    shown = os.environ.get(_VISIBLE)
    if shown is not None:
        return [device.strip() for device in shown.split(",") if device.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextlib.contextmanager
def own_gpus(wanted: int, waiting: Callable[[], None], folder: Path | None = None) -> Iterator[OwnGpus]:
    """Reserve GPUs that no other job uses; wait until there are enough.

    If the machine has too few, the job starts anyway and reports what is missing.

    Args:
        wanted: Number of GPUs.
        waiting: Called once if there are not enough yet.
        folder: Folder of the locks; None: the machine's, for all sweeps of this user.
    """
    visible = visible_gpus() if wanted else []
    if not wanted or len(visible) < wanted:
        yield OwnGpus({})
        return
    folder = folder or Path(tempfile.gettempdir()) / f"grace-exp-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        taken = _take(visible, wanted, folder, held)
        if not taken:
            waiting()
        while not taken:
            time.sleep(_POLL_SECONDS)
            taken = _take(visible, wanted, folder, held)
        yield OwnGpus({_VISIBLE: ",".join(taken)}, tuple(taken.values()))


def _take(visible: list[str], wanted: int, folder: Path, held: contextlib.ExitStack) -> dict[str, int]:
    """Lock the first GPUs that are free, all or none; return each lock's file descriptor by device."""
    with contextlib.ExitStack() as trying:
        gate = trying.enter_context((folder / "gate.lock").open("w"))
        fcntl.flock(gate, fcntl.LOCK_EX)  # one job at a time, so that no two wait for each other's GPUs
        found: dict[str, int] = {}
        locks = trying.enter_context(contextlib.ExitStack())
        for device in visible:
            lock = locks.enter_context((folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.lock").open("w"))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found[device] = lock.fileno()
            if len(found) == wanted:
                held.push(locks.pop_all())
                return found
    return {}
