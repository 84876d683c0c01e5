"""A process that has imported everything that jobs need; a sweep forks its jobs from it.

    python -m grace_exp.sweeps.warm_process SOCKET

Importing takes most of the time of a short run, forking takes some milliseconds. This process computes nothing: it has
no threads that a fork would lose, and no CUDA context that a fork would break. If it has after all, or if a job needs
another environment, the fork becomes a new Python instead.
"""

import contextlib
import importlib
import json
import logging
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace_exp.late_imports import start_quickly
from grace_exp.parent_death import end_with_parent

PROGRAM = ("-m", "grace_exp")
LONGEST_REQUEST = 1 << 17  # bytes: the environment and the overrides of a job
MOST_FILES = 64

_MODULES = (
    "grace_exp.openmp",  # before torch
    "grace_exp.__main__",
    "grace_exp.jobs.train",
    "grace_exp.policy.tiny",
    "grace_exp.rollout.transformers_engine",
    "datasets",
)
_KNOWN_THREADS = ("jemalloc_bg_thd",)  # of pyarrow; jemalloc stops it before a fork and restarts it afterwards
_PER_JOB = ("CUDA_VISIBLE_DEVICES",)  # read when CUDA starts, which happens in the job


def main() -> None:
    """Fork jobs until the other end of the socket is closed; return only in the processes of the jobs."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    surroundings = _surroundings(os.environ, Path.cwd())  # before the imports, which may set variables
    forkable = _import_all() and _is_forkable()
    while True:
        message, files, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, MOST_FILES)
        if not message:
            os._exit(0)
        request = json.loads(message)
        warm = os.getpid()
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become(request, files, warm)
            if not forkable or surroundings != _surroundings(request["environment"], Path(request["cwd"])):
                os.execve(sys.executable, [sys.executable, *PROGRAM, *request["arguments"]], request["environment"])
            return
        for file in files:
            os.close(file)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it is a new Python already, or gone
            os.setpgid(pid, pid)  # set here as well, so that the group exists before the sweep hears of the job
        connection.send(json.dumps({"pid": pid}).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _import_all() -> bool:
    start_quickly()
    as_of_hydra = logging.NullHandler()  # as Hydra sets one up before a job imports: libraries then add no handlers
    logging.root.addHandler(as_of_hydra)
    try:
        for module in _MODULES:
            importlib.import_module(module)
    except Exception:  # a new Python reports the error in the job's own output
        return False
    finally:
        logging.root.removeHandler(as_of_hydra)
    sys.modules.pop("grace_exp.__main__")  # the job runs its own
    return True


def _is_forkable() -> bool:
    """Whether only the main thread runs and CUDA's driver is not loaded."""
    pid = os.fork()  # OpenBLAS ends its threads before a fork, and restarts them when it computes
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    foreign = [name for name in threads if name not in _KNOWN_THREADS]
    return len(foreign) == 1 and "libcuda.so" not in Path("/proc/self/maps").read_text()


def _surroundings(environment: Mapping[str, str], cwd: Path) -> tuple[dict[str, str], Path]:
    """Return the environment that modules may have read while they were imported."""
    return {name: value for name, value in environment.items() if name not in _PER_JOB}, cwd


def _become(request: dict[str, Any], files: list[int], warm: int) -> None:
    """Turn this process into what `python -m grace_exp` would be as a child of the sweep."""
    os.setpgid(0, 0)
    end_with_parent(signal.SIGTERM)
    if os.getppid() != warm:  # the warm process has died
        os._exit(128 + signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    for name in _PER_JOB:
        os.environ.pop(name, None)
        if name in request["environment"]:
            os.environ[name] = request["environment"][name]
    output, *keep_open = files
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for file in keep_open:  # locks, which are held as long as this process lives
        os.set_inheritable(file, True)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # a new seed, as in a new process
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()
    sys.argv[1:] = request["arguments"]


if __name__ == "__main__":
    main()
    runpy.run_module("grace_exp", run_name="__main__", alter_sys=True)
