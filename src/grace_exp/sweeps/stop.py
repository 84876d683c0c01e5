"""Ctrl-C and SIGTERM in the process of a sweep whose jobs run in a launcher's workers."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from grace_exp.sweeps.record import is_free, read_records

Handler = Callable[[int, FrameType | None], None]


def stop_handler(sweep_dir: Path, started: str) -> Handler:
    """Return a signal handler: the first signal lets running jobs save their state, the second ends all at once.

    While a job runs in this process itself, the signals go to that job only. After the first signal this process ends.

    Args:
        sweep_dir: The sweep's folder.
        started: The mark of the sweep's records.
    """
    signals = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            running = {
                name: record
                for name, record in read_records(sweep_dir).items()
                if record.sweep == started
                and record.status == "running"
                and record.host == socket.gethostname()
                and record.pid != os.getpid()
            }
            if number == signal.SIGTERM:  # Ctrl-C reaches all processes of the terminal by itself
                for record in running.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(record.pid, number)
            while not all(is_free(sweep_dir / name) for name in running):
                time.sleep(0.1)
        sys.exit(128 + number)

    return stop


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Wait at most `seconds` until no process works in the folder; a killed process takes a moment to end."""
    end = time.monotonic() + seconds
    while not (free := is_free(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    return free
