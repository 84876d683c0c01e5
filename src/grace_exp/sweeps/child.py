"""Run a command as a child process: output to a file, signals passed on, no process left behind."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from grace_exp.parent_death import end_with_parent
from grace_exp.sweeps.forked_job import ForkedJob, warm_process

OUTPUT_FILE = "output.log"

_LAST_LINES = 8
_ENOUGH_SIGNALS = 3  # one to stop after the present step, one to stop at once, one to kill a process that hangs


class ChildProcess:
    """A child in a separate process group, so that Ctrl-C on the terminal reaches it only through this process."""

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        *,
        cwd: Path,
        keep_open: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        fork: bool = False,
    ) -> None:
        """Start the command.

        Args:
            command: Program and arguments.
            output: File to which its output is appended, after a line with the command.
            cwd: Its working directory.
            keep_open: File descriptors that it holds open while it lives.
            environment: Variables added to this process's environment.
            fork: Whether `python -m grace_exp ...` is forked from a process that has imported everything.
        """
        self._output = output
        with output.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {shlex.join(command)}\n")
            stream.flush()
            self._start = stream.tell()
            everything = {**os.environ, **(environment or {})}
            forked = fork and warm_process(cwd).become(command, stream.fileno(), cwd, everything, keep_open)
            self._process: ForkedJob | subprocess.Popen[bytes] = forked or subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=everything,
                pass_fds=keep_open,
                process_group=0,
                preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )

    def wait(self, starter: int) -> tuple[int, int | None]:
        """Wait until the child ends.

        SIGINT and SIGTERM are passed to the child, which decides what to do; the third signal kills it.

        Args:
            starter: The process that started the sweep. If it is this process's parent (a launcher with a pool) and
                dies, the child is told to stop.

        Returns:
            The exit code (minus the number of the signal that killed it), and the last signal that was passed on.
        """
        watched = os.getppid() == starter
        with self._passing_signals_on() as passed_on:
            while True:
                try:
                    code = self._process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    if watched and os.getppid() != starter:
                        watched = False
                        signal.raise_signal(signal.SIGTERM)
        if code != 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)  # processes that the child has left behind
        return code, passed_on[-1] if passed_on else None

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[list[int]]:
        passed_on: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            passed_on.append(number)
            self._process.send_signal(number if len(passed_on) < _ENOUGH_SIGNALS else signal.SIGKILL)

        previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield passed_on
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def last_words(self) -> list[str]:
        """Return the last lines that the child wrote."""
        with self._output.open("rb") as stream:
            stream.seek(self._start)
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-_LAST_LINES:]


def exit_text(code: int | None) -> str:
    """Return words for how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit code {code}"
