"""The sweep's side of the warm process: start it once, and let it fork into jobs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from grace_exp.parent_death import end_with_parent
from grace_exp.sweeps.warm_process import LONGEST_REQUEST, PROGRAM

_SHORT = 1 << 12


class ForkedJob:
    """A forked job, with the part of `subprocess.Popen` that a sweep needs."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """Store the connection on which its end is reported, and its process id."""
        self.pid = pid
        self._connection = connection
        self._code: int | None = None

    def wait(self, timeout: float) -> int:
        """Return the exit code, minus the number of the signal that killed it.

        Raises:
            subprocess.TimeoutExpired: It has not ended within so many seconds.
        """
        if self._code is None:
            self._connection.settimeout(timeout)
            try:
                message = self._connection.recv(_SHORT)
            except TimeoutError:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout) from None
            # Without the warm process the job is told to stop, and its exit code stays unknown.
            self._code = json.loads(message)["code"] if message else -signal.SIGTERM
        return self._code

    def send_signal(self, number: int) -> None:
        """Send the job a signal, if it has not ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class WarmProcess:
    """The warm process; it ends with this process."""

    def __init__(self, cwd: Path, environment: Mapping[str, str]) -> None:
        """Start it; it imports in the background.

        Args:
            cwd: Working directory of its jobs.
            environment: Environment of its jobs.
        """
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "grace_exp.sweeps.warm_process", str(theirs.fileno())],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # the sweep passes signals of the terminal on
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )

    def close(self) -> None:
        """End the process, and ask its job, if there is one, to stop."""
        self._process.terminate()
        self._process.wait()

    def is_alive(self) -> bool:
        """Whether it can still fork into a job."""
        return self._process.poll() is None

    def become(
        self,
        command: Sequence[str],
        output: int,
        cwd: Path,
        environment: Mapping[str, str],
        keep_open: Sequence[int] = (),
    ) -> ForkedJob | None:
        """Let the process fork into a job.

        Args:
            command: `python -m grace_exp` with its overrides.
            output: File descriptor of standard output and error.
            cwd: Working directory of the job.
            environment: The job's whole environment.
            keep_open: File descriptors that it holds open while it lives.

        Returns:
            The job; None if the process is gone, or the request is too long.
        """
        arguments = list(command)[1 + len(PROGRAM) :]
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
        message = json.dumps(request).encode()
        if len(message) > LONGEST_REQUEST:
            return None
        try:
            self._connection.settimeout(None)
            socket.send_fds(self._connection, [message], [output, *keep_open])
            answer = self._connection.recv(_SHORT)
        except OSError:
            return None
        return ForkedJob(self._connection, json.loads(answer)["pid"]) if answer else None


_started: list[WarmProcess] = []


def warm_process(cwd: Path) -> WarmProcess:
    """Return the warm process of this process, started at the first call."""
    if not _started or not _started[-1].is_alive():
        _started[:] = [WarmProcess(cwd, os.environ)]
    return _started[-1]
