"""Child processes: their end, their signals, their locks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grace_exp.sweeps.child import ChildProcess, exit_text
from grace_exp.sweeps.record import alone_in, is_free

NOBODY = -1  # no process has that id


def start(folder: Path, code: str, keep_open: tuple[int, ...] = ()) -> ChildProcess:
    return ChildProcess([sys.executable, "-S", "-c", code], folder / "out", cwd=folder, keep_open=keep_open)


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_the_exit_code_and_the_last_words_of_this_start(tmp_path: Path) -> None:
    assert start(tmp_path, "print('first')").wait(NOBODY) == (0, None)
    child = start(tmp_path, "import sys; print('second'); print(); sys.exit('why')")
    assert child.wait(NOBODY) == (1, None)
    assert child.last_words() == ["second", "why"] and "first" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_child_decides(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({number}, lambda *_: sys.exit(3))\n"
        f"os.kill(os.getppid(), {number})\n"
        "time.sleep(60)"
    )
    before = signal.getsignal(number)
    assert start(tmp_path, code).wait(NOBODY) == (3, number)
    assert signal.getsignal(number) is before


def test_the_third_signal_ends_a_child_that_ignores_them(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(300): os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.2)"
    )
    assert start(tmp_path, code).wait(NOBODY) == (-signal.SIGKILL, signal.SIGTERM)


def test_processes_that_a_failed_child_left_are_ended(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(1)"
    child = start(tmp_path, code)
    assert child.wait(NOBODY)[0] == 1
    assert eventually(lambda: is_gone(int(child.last_words()[0])))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_child_ends_with_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from grace_exp.sweeps.child import ChildProcess\n"
        "child = ChildProcess(['sh', '-c', 'echo $$ > pid; exec sleep 60'], Path('out'), cwd=Path('.'))\n"
        "child.wait(-1)"
    )
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    try:
        assert eventually(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith("\n"))
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: is_gone(int((tmp_path / "pid").read_text())))


def test_the_lock_lasts_as_long_as_the_child(tmp_path: Path) -> None:
    assert is_free(tmp_path)
    with alone_in(tmp_path) as lock:
        child = start(tmp_path, "import time; time.sleep(0.3)", keep_open=(lock,))
    assert not is_free(tmp_path)
    child.wait(NOBODY)
    assert is_free(tmp_path)


def test_exit_codes_in_words() -> None:
    assert exit_text(1) == "exit code 1"
    assert exit_text(-9) == "killed by SIGKILL (out of memory?)"
    assert exit_text(-15) == "killed by SIGTERM"
