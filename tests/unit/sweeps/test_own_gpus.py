"""Jobs of a sweep that run at the same time get different GPUs, from a list given by the test."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from grace_exp.config.compose import compose_config
from grace_exp.sweeps import own_gpus as module
from grace_exp.sweeps import start
from grace_exp.sweeps.own_gpus import own_gpus, visible_gpus, wanted_gpus


def nobody_waits() -> None:
    raise AssertionError("there are enough")


@pytest.fixture(autouse=True)
def _four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-1a/2")
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)


def test_jobs_get_different_gpus_and_give_them_back(tmp_path: Path) -> None:
    with own_gpus(2, nobody_waits, tmp_path) as first, own_gpus(1, nobody_waits, tmp_path) as second:
        assert first.environment == {"CUDA_VISIBLE_DEVICES": "4,5"}
        assert second.environment == {"CUDA_VISIBLE_DEVICES": "6"}
        assert len(first.locks) == 2
    with own_gpus(4, nobody_waits, tmp_path) as all_of_them:
        assert all_of_them.environment == {"CUDA_VISIBLE_DEVICES": "4,5,6,GPU-1a/2"}


def test_a_job_waits_until_as_many_as_it_wants_are_free_at_one_time(tmp_path: Path) -> None:
    waits, got = threading.Event(), []

    def second() -> None:
        with own_gpus(2, waits.set, tmp_path) as gpus:
            got.append(gpus.environment["CUDA_VISIBLE_DEVICES"])

    with own_gpus(3, nobody_waits, tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        with own_gpus(1, nobody_waits, tmp_path) as third:  # it holds none while it waits
            assert third.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1a/2"}
        time.sleep(0.05)
        assert got == []
    thread.join(10)
    assert got == ["4,5"]


def test_the_gpus_are_a_jobs_as_long_as_it_lives_whatever_becomes_of_who_started_it(tmp_path: Path) -> None:
    with own_gpus(3, nobody_waits, tmp_path) as gpus:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=gpus.locks)
    waited = []

    def end_the_child() -> None:
        waited.append(True)
        child.communicate(b"\n")

    with own_gpus(2, end_the_child, tmp_path) as again:
        assert again.environment == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert waited


def test_a_machine_with_too_few_is_left_to_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for visible in ("", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with own_gpus(2, nobody_waits, tmp_path) as gpus:
            assert gpus.environment == {} and gpus.locks == ()
    with own_gpus(0, nobody_waits, tmp_path) as gpus:
        assert gpus.environment == {}


def test_without_a_list_every_gpu_of_the_machine_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["+experiment=demo_tiny"], 0),
        (["+experiment=demo_tiny", "hardware=gpu"], 1),
        (["+experiment=qwen_sup"], 4),
        (["+experiment=qwen_sup", "job=prepare_data"], 0),
        (["+experiment=demo_tiny", "hardware=gpu", "rollout=vllm_server", "rollout.vllm.server.devices=1"], 2),
    ],
)
def test_a_job_wants_the_gpus_of_its_processes_and_of_its_own_server(overrides: list[str], wanted: int) -> None:
    assert wanted_gpus(compose_config(overrides, Path("run"))) == wanted


def test_a_sweep_shows_each_job_its_own(invoke, children, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(start, "check_machine", lambda config: None)
    seen = []

    def inside(started):
        with own_gpus(1, nobody_waits) as other:
            seen.append((started.environment, other.environment))
        return children.finish(started)

    children.behaviour = inside
    assert invoke("seed=0,1", "hardware=gpu", "rollout=transformers") == 0
    assert seen == [({"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"})] * 2
    seen.clear()
    assert invoke("seed=2", "hydra.sweep.dir=other") == 0
    assert seen == [({}, {"CUDA_VISIBLE_DEVICES": "4"})]  # on the CPU
