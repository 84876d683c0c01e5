"""End a process when the process that started it ends, for whatever reason."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent dies, even by SIGKILL; on Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def end_with_launcher() -> None:
    """End this process as soon as the first process of its machine ends, if that one started it (Lightning does).

    A process in a collective call of NCCL would wait for the others forever, and hold its GPU. A cluster's launcher
    (torchrun, srun) ends the processes that it started.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        end_with_parent(signal.SIGKILL)
