"""End the other processes of this machine when the first one fails."""

import contextlib
import signal
import subprocess
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_BY_THEMSELVES = 2.0
"""Seconds in which processes that fail with the same error may end by themselves."""
_AFTER_SIGTERM = 3.0
_AT_THE_END = 60.0


class EndChildren(Callback):
    """Ends the processes that this process has started when the run fails here.

    Lightning does this only after Ctrl-C. Processes in a collective call of NCCL would wait up to its time limit of
    hours, and hold their GPUs.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the processes before this one frees resources, which could wait for them."""
        end_children(trainer.strategy.launcher)


def end_children(launcher: Any) -> None:
    """End the processes that Lightning's launcher has started: let them end, then send SIGTERM, then SIGKILL.

    Args:
        launcher: Launcher of a strategy; None, or one that has started no process, is ignored.
    """
    children = list(_children_of(launcher))
    for number, seconds in ((None, _BY_THEMSELVES), (signal.SIGTERM, _AFTER_SIGTERM), (signal.SIGKILL, _AFTER_SIGTERM)):
        for child in children:
            if number is not None and child.poll() is None:
                child.send_signal(number)
        _wait(children, seconds)
    _children_of(launcher).clear()  # Lightning's observer of the same list would also kill this process


def wait_for_children(launcher: Any) -> None:
    """Wait until the processes that Lightning's launcher has started end; our end would cut them off."""
    _wait(_children_of(launcher), _AT_THE_END)


def _children_of(launcher: Any) -> "list[subprocess.Popen[bytes]]":
    """Return the launcher's own list."""
    children: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", [])
    return children


def _wait(children: "list[subprocess.Popen[bytes]]", seconds: float) -> None:
    end = time.monotonic() + seconds
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, end - time.monotonic()))
