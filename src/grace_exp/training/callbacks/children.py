"""The other processes of this machine, which end when the first one fails."""

import contextlib
import signal
import subprocess
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_BY_THEMSELVES = 2.0
"""Seconds for processes that fail with the same error."""
_AFTER_SIGTERM = 3.0
_AT_THE_END = 60.0


class EndChildren(Callback):
    """Ends the processes that this one has started as soon as the run fails here.

    Lightning does it after Ctrl-C only. Processes that wait in a collective call of NCCL would wait on, up to its time
    limit of hours, and hold their GPUs.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End them before anything here is taken down, which could wait for them."""
        end_children(trainer.strategy.launcher)


def end_children(launcher: Any) -> None:
    """End the processes that Lightning's launcher has started: by themselves, by SIGTERM, by SIGKILL.

    Args:
        launcher: Of a strategy; one that has started none, or None, is left alone.
    """
    children = list(_children_of(launcher))
    for number, seconds in ((None, _BY_THEMSELVES), (signal.SIGTERM, _AFTER_SIGTERM), (signal.SIGKILL, _AFTER_SIGTERM)):
        for child in children:
            if number is not None and child.poll() is None:
                child.send_signal(number)
        _wait(children, seconds)
    _children_of(launcher).clear()  # Lightning's observer of the same list would kill this process, too


def wait_for_children(launcher: Any) -> None:
    """Let the processes that Lightning's launcher has started come to their end, which would be cut off by ours."""
    _wait(_children_of(launcher), _AT_THE_END)


def _children_of(launcher: Any) -> "list[subprocess.Popen[bytes]]":
    """The launcher's own list."""
    children: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", [])
    return children


def _wait(children: "list[subprocess.Popen[bytes]]", seconds: float) -> None:
    end = time.monotonic() + seconds
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, end - time.monotonic()))
