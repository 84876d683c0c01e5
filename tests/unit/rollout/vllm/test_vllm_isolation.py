import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch

from grace_exp.errors import GraceError
from grace_exp.rollout.vllm.isolation import TimedThread, undisturbed


@pytest.fixture
def thread() -> TimedThread:
    return TimedThread("test")


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_generators_threads_and_environment_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("RANK", "3")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    with undisturbed():
        torch.manual_seed(0)
        draw()
        torch.set_num_threads(threads + 1)
        torch.set_num_threads = lambda number: None
        os.environ |= {"LD_PRELOAD": "libgomp.so", "RANK": "0"}
    assert draw() == expected
    assert torch.set_num_threads is set_num_threads
    assert torch.get_num_threads() == threads
    assert "LD_PRELOAD" not in os.environ and os.environ["RANK"] == "3"


def test_calls_run_one_after_another_on_one_other_thread(thread: TimedThread) -> None:
    names = [thread.call(threading.get_ident, seconds=10, what="", hint="") for _ in range(3)]
    assert len(set(names)) == 1 and names[0] != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own")])
def test_an_error_is_raised_here(thread: TimedThread, error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        thread.call(fail, seconds=10, what="", hint="")
    assert not thread.stuck
    assert thread.call(lambda: 4, seconds=10, what="", hint="") == 4


def test_a_call_that_does_not_come_back_fails_in_time_and_all_later_ones_at_once(thread: TimedThread) -> None:
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(GraceError, match=r"not come back from its nap within 0.1 s: wake it"):
        thread.call(lambda: release.wait(30), seconds=0.1, what="its nap", hint="wake it")
    with pytest.raises(GraceError, match="its nap"):
        thread.call(lambda: 4, seconds=10, what="more", hint="")
    assert time.monotonic() - start < 5
    assert thread.stuck
    release.set()


def test_nobody_waits_for_a_call_that_was_interrupted(thread: TimedThread) -> None:
    release = threading.Event()
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        thread.call(lambda: release.wait(30), seconds=30, what="its nap", hint="")
    assert thread.stuck and time.monotonic() - start < 10
    release.set()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
