"""Start, watch and end a vLLM server."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from grace_exp.errors import ConfigError, GraceError
from grace_exp.rollout.vllm import guard
from grace_exp.rollout.vllm.client import VllmClient

_POLL_SECONDS = 0.5
_LOG_LINES = 12
_END_SECONDS = 30.0
_CLEAN_UP_SECONDS = 5.0


class ServerProcess:
    """A process that ends when this process ends, for whatever reason (see `guard`)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the command.

        Args:
            command: Program and arguments.
            environment: Variables added to this process's environment.
            log: File for its output.
        """
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._guard = subprocess.Popen(
                [sys.executable, "-P", guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C goes to the trainer only, which ends the server itself
            )

    @property
    def pid(self) -> int:
        """Process id of the guard; the server is its child."""
        return self._guard.pid

    def wait_until_ready(self, client: VllmClient, seconds: float) -> None:
        """Return when the server answers.

        Raises:
            GraceError: The server died, or took longer than `seconds`; the message shows the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not client.healthy():
            if self._guard.poll() is not None:
                raise GraceError(f"the vLLM server did not start ({self.exit_status()}): {self.last_words()}")
            if time.monotonic() > deadline:
                raise GraceError(
                    f"the vLLM server did not answer within rollout.vllm.start_timeout={seconds:g} s: "
                    f"{self.last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    @staticmethod
    def wait_for_another(client: VllmClient, seconds: float) -> None:
        """Return when the server that another process of the run starts answers.

        Raises:
            GraceError: It did not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not client.healthy():
            if time.monotonic() > deadline:
                raise GraceError(
                    f"no vLLM server answers at {client.url} after rollout.vllm.start_timeout={seconds:g} s: the run's "
                    "first process, which starts it, says why"
                )
            time.sleep(_POLL_SECONDS)

    def exit_status(self) -> str | None:
        """Return how the server ended, if it seems to have ended; None if it runs."""
        # After the server died, the guard first ends what it left behind, and then itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(guard.GRACE_SECONDS + _CLEAN_UP_SECONDS)
        code = self._guard.poll()
        if code is None:
            return None
        return f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"

    def last_words(self) -> str:
        """Return the end of the log, and where the rest is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return "\n  ".join([f"the end of {self.log}:", *lines[-_LOG_LINES:]])

    def close(self) -> None:
        """End the server and all processes that it started."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def choose_port(host: str, port: int | None) -> int:
    """Return the configured port, or any free one.

    Raises:
        ConfigError: Another program listens on the port.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise ConfigError(
                f"rollout.vllm.server.port={port} cannot be used on host {host}: {error.strerror}. Choose another "
                "(null is any free one), or set rollout.vllm.server.url if it is your server that listens there"
            ) from error
        return int(probe.getsockname()[1])
