"""The life of a vLLM server that a run starts."""

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
    """A process that ends with this one, however this one ends (see `guard`)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the command.

        Args:
            command: Program and arguments.
            environment: Set on top of this process's own.
            log: Takes what it prints.
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
                start_new_session=True,  # Ctrl-C is for the trainer, which ends the server when it is done with it
            )

    @property
    def pid(self) -> int:
        """Of the guard; the server is its child."""
        return self._guard.pid

    def wait_until_ready(self, client: VllmClient, seconds: float) -> None:
        """Return when the server answers.

        Raises:
            GraceError: It died, or took longer than `seconds`; the message has the end of its log.
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
        """Return when a server answers that another process of the run starts.

        Raises:
            GraceError: It did not within `seconds`.
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
        """How it ended, for one that seems to have; None if it runs after all."""
        # The guard ends after it has cleaned up behind a server that died, which is asked politely first.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(guard.GRACE_SECONDS + _CLEAN_UP_SECONDS)
        code = self._guard.poll()
        if code is None:
            return None
        return f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"

    def last_words(self) -> str:
        """The end of its log, and where the rest is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return "\n  ".join([f"the end of {self.log}:", *lines[-_LOG_LINES:]])

    def close(self) -> None:
        """End it and all that it started."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def choose_port(host: str, port: int | None) -> int:
    """The configured port, or any free one.

    Raises:
        ConfigError: Something else listens there.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise ConfigError(
                f"rollout.vllm.server.port={port} cannot be had on host {host}: {error.strerror}. Choose another (null "
                "is any free one), or set rollout.vllm.server.url if it is your server that listens there"
            ) from error
        return int(probe.getsockname()[1])
