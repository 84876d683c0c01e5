"""Call vLLM without changing the trainer's process, and within a time limit."""

import contextlib
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import torch

from grace_exp.errors import GraceError

Result = TypeVar("Result")

_CHANGED_ENVIRONMENT = ("LD_PRELOAD", "NUMEXPR_MAX_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Environment variables set for vLLM's start, by vLLM or by this package; child processes must not inherit them."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the global random generators, torch's threads and the environment afterwards.

    vLLM seeds the generators when it starts, draws from them, and on CPUs turns `torch.set_num_threads` into a no-op.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    environment = {name: os.environ.get(name) for name in _CHANGED_ENVIRONMENT}
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class TimedThread:
    """Runs calls one after another on a separate thread, each with a time limit.

    A call into an engine cannot be interrupted, but it can be abandoned. The thread is a daemon, so a call that never
    returns does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._calls: queue.SimpleQueue[tuple[Future[object], Callable[[], object]] | None] = queue.SimpleQueue()
        self._stuck: str | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], Result], *, seconds: float, what: str, hint: str) -> Result:
        """Run `function` and return its result.

        Args:
            function: A function without arguments; what it raises is raised here.
            seconds: The time limit.
            what: Name of the call in the error, e.g. "writing rationales".
            hint: What to check if the call does not return.

        Raises:
            GraceError: The call, or an earlier one, did not return in time.
        """
        if self._stuck is not None:
            raise GraceError(self._stuck)
        future: Future[object] = Future()
        self._calls.put((future, function))
        try:
            return future.result(timeout=seconds)  # type: ignore[return-value]
        except BaseException as error:
            if future.done():
                raise  # the function's own TimeoutError
            if isinstance(error, TimeoutError):
                self._stuck = f"vLLM has not come back from {what} within {seconds:g} s: {hint}"
                raise GraceError(self._stuck) from error
            self._stuck = f"vLLM was interrupted in {what}"  # Ctrl-C: no caller waits for the result any more
            raise

    @property
    def stuck(self) -> bool:
        """Whether a call has not returned, or was interrupted."""
        return self._stuck is not None

    def close(self) -> None:
        """End the thread after the present call."""
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, function = item
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del item, future, function
