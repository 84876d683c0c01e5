"""A command as a child process: its output in a file, signals passed on, nothing of it left behind."""

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
_ENOUGH_SIGNALS = 3  # one to stop after the step under way, one to stop at once, one for a process that hangs


class ChildProcess:
    """A process in a group of its own, so that Ctrl-C on the terminal reaches it once and through us."""

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
        """Start it.

        Args:
            command: Program and arguments.
            output: What it says is appended here, after a line with the command.
            cwd: Where it runs.
            keep_open: File descriptors that it holds open as long as it lives.
            environment: Set on top of this process's own.
            fork: `python -m grace_exp ...` is made by forking a process that has imported everything.
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
        """Wait for its end.

        SIGINT and SIGTERM go to the child, which decides what to do; the third kills it.

        Args:
            starter: The process that started the sweep. Where it is our parent (a launcher with a pool) and dies, the
                child is told to stop.

        Returns:
            The exit code (minus the signal's number where one killed it), and the last signal that was passed on.
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
                os.killpg(self._process.pid, signal.SIGTERM)  # processes that it had started and left
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
        """The last lines that it wrote."""
        with self._output.open("rb") as stream:
            stream.seek(self._start)
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-_LAST_LINES:]


def exit_text(code: int | None) -> str:
    """Words for how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit code {code}"
