"""Run a server as long as the process that started it lives: `python -P guard.py COMMAND...`, standard library only.

Standard input is a pipe to which nobody writes. It ends when the other side closes it or dies, also by kill -9. The
guard then ends the server and all processes that the server has started. It also ends them if the server itself dies.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Guard the command in `sys.argv`; return its exit code, or 128 + the signal that ended it."""
    asked_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked_to_end.append(received))
    server = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a separate process group, which can be ended as a whole
        preexec_fn=_die_with_parent,
    )
    while server.poll() is None and not asked_to_end:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1024):
            break
    _end_group(server)
    code = server.returncode
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    """Let the kernel end the server if the guard itself is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    """Ask the server's process group to end, and kill it if it does not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        server.poll()
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main())
