"""A process that ends with the one that started it, however that one ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL; Linux only, else nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def end_with_launcher() -> None:
    """End this process at once with the first process of its machine, where that one started it (Lightning does).

    A process that waits for others in a collective call of NCCL waits on when they are gone, and holds its GPU.
    Processes that a cluster's launcher started (torchrun, srun) are that launcher's to end.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        end_with_parent(signal.SIGKILL)
