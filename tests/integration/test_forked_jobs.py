"""Jobs of a sweep that are forks of one process give the same runs as new processes, independent of each other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import grace_exp
from grace_exp.sweeps.forked_job import ForkedJob, WarmProcess
from grace_exp.sweeps.record import alone_in, is_free
from grace_exp.tracking.metrics_csv import TIMED_PREFIXES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")

SMALL = ["+experiment=demo_tiny", "hardware.threads=1", "rollout.group_size=3", "rollout.max_tokens=6", "job.steps=2"]
QUIET = ["logger.samples_every_n_steps=0", "logger.evolution_every_n_steps=0", "callbacks.progress=lines"]
TERMS = """
import os, signal
def fine(inputs):
    return inputs.rollouts_to_own_anchors_GKA.mean(-1)
def crash(inputs):
    os.kill(os.getpid(), signal.SIGSEGV)
def leave(inputs):
    os._exit(0)
def look(inputs):
    import json, logging, random, numpy, torch
    loggers = [logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict)]
    kept = {one.name: list(map(str, one.handlers)) for one in loggers if one.handlers or not one.propagate}
    draws = [random.random(), numpy.random.random(), float(torch.rand(()))]
    with open("looked.jsonl", "a") as file:
        file.write(json.dumps([kept, torch.get_num_threads(), draws]) + chr(10))
    return fine(inputs)
"""
LONG = 300


def environment(place: Path) -> dict[str, str]:
    paths = [str(Path(grace_exp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    # Without OMP_NUM_THREADS libraries start as many threads as there are cores, some while they are imported.
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "GRACE_EXP_CACHE": str(place / "cache"), "COLUMNS": "160"}


def sweep(place: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    small = [one for one in SMALL if one.split("=")[0] not in {other.split("=")[0] for other in overrides}]
    command = [sys.executable, "-m", "grace_exp", "-m", *small, *overrides]
    return subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=LONG, check=False
    )


def jobs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return found


def metrics(run: Path) -> pd.DataFrame:
    table = pd.read_csv(run / "metrics.csv", dtype=str, keep_default_na=False)
    return table[[name for name in table if not name.startswith(TIMED_PREFIXES)]]


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LONG
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_forked_jobs_give_what_jobs_give_that_import_for_themselves_byte_for_byte(tmp_path: Path) -> None:
    swept = ["seed=1,2", "hardware.threads=2"]
    for warm in ("true", "false"):
        done = sweep(tmp_path, *swept, f"hydra.callbacks.sweep.warm={warm}", f"hydra.sweep.dir=warm_{warm}")
        assert (done.returncode, done.stderr) == (0, "")
    forked, fresh = (jobs(tmp_path / f"warm_{warm}") for warm in ("true", "false"))
    assert len(forked) == 2 and {job["status"] for job in forked} == {"finished"}
    for job, other in zip(forked, fresh, strict=True):
        run, its_twin = tmp_path / "warm_true" / job["folder"], tmp_path / "warm_false" / other["folder"]
        weights = "export/merged/model.safetensors"
        assert (run / weights).read_bytes() == (its_twin / weights).read_bytes()
        pd.testing.assert_frame_equal(metrics(run), metrics(its_twin))
        assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in its_twin.iterdir())
        said = [(folder / "output.log").read_text().splitlines()[1:3] for folder in (run, its_twin)]
        assert said[0][1] == said[1][1] == "loading tiny"  # and no warning before it
    assert forked[0]["figures"] != forked[1]["figures"]


def test_a_forked_job_finds_a_process_as_a_new_one_has_it(tmp_path: Path) -> None:
    (tmp_path / "terms.py").write_text(TERMS)
    term = ["+reward.terms.custom.path=terms.py", "+reward.terms.custom.weight=1", "+reward.terms.custom.name=look"]
    for warm, seeds in (("true", "1,2"), ("false", "1")):
        done = sweep(tmp_path, *term, "job.steps=1", f"seed={seeds}", f"hydra.callbacks.sweep.warm={warm}",
                     f"hydra.sweep.dir={warm}")  # fmt: skip
        assert done.returncode == 0
    looked = [json.loads(line) for line in (tmp_path / "looked.jsonl").read_text().splitlines()]
    loggers, threads, draws = zip(*looked, strict=True)
    calls = len(looked) // 3  # of each of three jobs: the first before it seeds its generators
    assert loggers[calls - 1] == loggers[2 * calls - 1] == loggers[-1]
    assert {threads[calls - 1], threads[2 * calls - 1], threads[-1]} == {
        1
    }  # a term's own check comes before the setting
    assert all(len({drawn[place] for drawn in draws[::calls]}) == 3 for place in range(3))


def test_a_job_that_crashes_is_named_and_ends_no_other(tmp_path: Path) -> None:
    (tmp_path / "terms.py").write_text(TERMS)
    term = ["+reward.terms.custom.path=terms.py", "+reward.terms.custom.weight=1"]
    done = sweep(tmp_path, *term, "+reward.terms.custom.name=crash,leave,fine", "hydra.sweep.dir=out")
    assert done.returncode == 2
    found = jobs(tmp_path / "out")
    ends = [("failed", -signal.SIGSEGV), ("failed", 0), ("finished", 0)]
    assert [(job["status"], job["exit_code"]) for job in found] == ends
    assert "failed: reward.terms.custom.name=crash, killed by SIGSEGV\n" in done.stdout
    assert "failed: it ended with exit code 0 and left no result.json" in done.stdout


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WarmProcess, Path, dict[str, str]]]:
    place = tmp_path_factory.mktemp("warm")
    surroundings = environment(place)
    process = WarmProcess(place, surroundings)
    yield process, place, surroundings
    process.close()


Become = Callable[..., ForkedJob]


@pytest.fixture
def become(warm: tuple[WarmProcess, Path, dict[str, str]], tmp_path: Path) -> Become:
    process, place, surroundings = warm

    def become(*arguments: str, keep_open: tuple[int, ...] = (), cwd: Path = place, **more: str) -> ForkedJob:
        with (tmp_path / "output").open("w") as stream:
            command = [sys.executable, "-m", "grace_exp", *arguments]
            job = process.become(command, stream.fileno(), cwd, {**surroundings, **more}, keep_open)
        assert job is not None
        return job

    return become


def is_new_python(pid: int) -> bool:
    return b"warm_process" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_its_exit_code_and_output_are_those_of_the_command(become: Become, tmp_path: Path) -> None:
    assert become("+experiment=demo_tiny", "job.steps=0").wait(LONG) == 2
    assert "job.steps" in (tmp_path / "output").read_text()
    assert become("--version").wait(LONG) == 0
    assert "Hydra" in (tmp_path / "output").read_text()


def test_a_signal_ends_it_as_it_ends_the_command(become: Become, tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 2), (signal.SIGKILL, -signal.SIGKILL)):
        job = become(*SMALL, "job.steps=500", f"hydra.run.dir={tmp_path}/{code}", *QUIET)
        assert not is_new_python(job.pid) and os.getpgid(job.pid) == job.pid
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(0.1)
        assert eventually(lambda: "step 1/500" in (tmp_path / "output").read_text())
        job.send_signal(number)
        assert job.wait(LONG) == code
        job.send_signal(signal.SIGTERM)  # to nobody


def test_other_surroundings_than_those_of_the_imports_ask_for_a_new_python(become: Become, tmp_path: Path) -> None:
    for more in ({}, {"CUDA_VISIBLE_DEVICES": ""}, {"OMP_NUM_THREADS": "1"}):
        (tmp_path / "output").unlink(missing_ok=True)
        job = become(*SMALL, "job.steps=500", f"hydra.run.dir={tmp_path}/run", *QUIET, **more)
        assert eventually(lambda: "loading tiny" in (tmp_path / "output").read_text())
        assert is_new_python(job.pid) == ("OMP_NUM_THREADS" in more)
        variables = Path(f"/proc/{job.pid}/environ")
        job.send_signal(signal.SIGKILL)
        job.wait(LONG)
        assert not variables.exists()


def test_a_lock_is_the_jobs_and_the_job_ends_with_the_warm_process(tmp_path: Path) -> None:
    surroundings = environment(tmp_path)
    warm = WarmProcess(tmp_path, surroundings)
    command = [sys.executable, "-m", "grace_exp", *SMALL, *QUIET, "job.steps=5000", "hydra.run.dir=run"]
    with (tmp_path / "output").open("w") as stream, alone_in(tmp_path) as lock:
        job = warm.become(command, stream.fileno(), tmp_path, surroundings, [lock])
        assert job is not None
    assert not is_free(tmp_path) and not is_gone(job.pid)
    warm.close()
    assert job.wait(LONG) == -signal.SIGTERM
    assert eventually(lambda: is_gone(job.pid) and is_free(tmp_path))
    assert not warm.is_alive() and warm.become(command, 1, tmp_path, surroundings) is None
