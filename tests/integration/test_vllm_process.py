"""No server outlives its run. The server here is a stand-in that starts a process of its own, as vLLM does."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from grace_exp.errors import ConfigError, GraceError
from grace_exp.rollout.vllm.client import VllmClient
from grace_exp.rollout.vllm.server_process import ServerProcess, choose_port

FAMILY = textwrap.dedent(
    """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print(os.getpid(), child.pid, flush=True)
    time.sleep(120)
    """
)
"""A server with a child; prints both process ids."""
SECONDS = 30.0


def wait_for(condition: object, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def pids(log: Path) -> list[int]:
    assert wait_for(lambda: log.is_file() and len(log.read_text().split()) == 2)
    return [int(word) for word in log.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_gone(found: list[int]) -> bool:
    return wait_for(lambda: not any(map(alive, found)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def test_closing_ends_the_server_and_its_children(log: Path) -> None:
    server = ServerProcess([sys.executable, "-c", FAMILY], {}, log)
    found = pids(log)
    assert all(map(alive, found))
    server.close()
    assert not any(map(alive, found))


def test_a_server_that_ignores_the_polite_signal_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
    server = ServerProcess([sys.executable, "-c", stubborn], {}, log)
    found = pids(log)
    server.close()
    assert not any(map(alive, found))


def test_children_do_not_outlive_a_killed_server(log: Path) -> None:
    server = ServerProcess([sys.executable, "-c", FAMILY], {}, log)
    found = pids(log)
    os.kill(found[0], signal.SIGKILL)
    assert all_gone(found)
    assert wait_for(lambda: server.exit_status() == "killed by signal 9")
    server.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_does_not_outlive_a_run_that_a_signal_ends(log: Path, number: signal.Signals) -> None:
    trainer = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from grace_exp.rollout.vllm.server_process import ServerProcess
        server = ServerProcess([sys.executable, "-c", {FAMILY!r}], {{}}, Path({str(log)!r}))
        time.sleep(120)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", trainer], stderr=subprocess.DEVNULL)
    found = pids(log)
    process.send_signal(number)
    process.wait()
    assert all_gone(found)


def test_a_server_does_not_outlive_a_killed_guard(log: Path) -> None:
    server = ServerProcess(
        [sys.executable, "-c", "import os, time; print(os.getpid(), 0, flush=True); time.sleep(120)"], {}, log
    )
    found = pids(log)[:1]
    os.kill(server.pid, signal.SIGKILL)
    assert all_gone(found)


def test_a_server_that_dies_at_its_start_is_told_with_its_last_words(log: Path) -> None:
    server = ServerProcess([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], {}, log)
    with pytest.raises(GraceError, match=r"did not start \(exit code 3\): the end of .*\n  no such model"):
        server.wait_until_ready(VllmClient("http://127.0.0.1:9"), SECONDS)
    server.close()


def test_a_server_that_never_answers_is_given_up(log: Path) -> None:
    server = ServerProcess([sys.executable, "-c", FAMILY], {}, log)
    with pytest.raises(GraceError, match=r"did not answer within rollout.vllm.start_timeout=0.1 s"):
        server.wait_until_ready(VllmClient("http://127.0.0.1:9"), 0.1)
    found = pids(log)
    server.close()
    assert not any(map(alive, found))


def test_a_taken_port_is_told_and_a_free_one_found() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"rollout.vllm.server.port={taken} cannot be used"):
            choose_port("127.0.0.1", taken)
        assert choose_port("127.0.0.1", None) != taken
