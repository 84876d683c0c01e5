"""Sleeping, waking and devices of the engine in process, with a vLLM and a CUDA that keep a record."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.config.vllm import VllmConfig
from grace_exp.rollout.protocol import Request
from grace_exp.rollout.vllm import in_process
from grace_exp.rollout.vllm.in_process import VllmEngine
from grace_exp.rollout.vllm.llm import local_rank
from grace_exp.rollout.vllm.memory import MemoryPlan

REQUESTS = [Request((5, 6), 1, 4, 1.0, 0)]
LOADED = ["start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache"]


class RecordingLlm:
    """Has the methods of `vllm.LLM` that an engine calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.llm_engine = SimpleNamespace(remove_lora=lambda number: None, add_lora=lambda adapter: None)

    def start_weight_update(self) -> None:
        self.calls.append("start_weight_update")

    def update_weights(self, payload: dict[str, Any]) -> None:
        self.first_weight = next(iter(payload["update_info"]["weights"]))[1].flatten()[0].item()
        self.calls.append("update_weights")

    def finish_weight_update(self) -> None:
        self.calls.append("finish_weight_update")

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")


class Cuda:
    """A device a thread, as CUDA has it."""

    def __init__(self) -> None:
        self._here = threading.local()
        self.synchronized: list[int] = []

    def current_device(self) -> int:
        return getattr(self._here, "device", 0)

    def set_device(self, device: int) -> None:
        self._here.device = device

    def synchronize(self) -> None:
        self.synchronized.append(self.current_device())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    recorded = Cuda()
    for name in ("current_device", "set_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorded, name))
    return recorded


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> RecordingLlm:
    recorded = RecordingLlm()
    monkeypatch.setattr(in_process, "vllm_problem", lambda accelerator: None)
    monkeypatch.setattr(in_process, "make_llm", lambda *_, **__: (recorded, SimpleNamespace(forget=lambda: None)))
    monkeypatch.setattr(in_process, "end_llm", lambda llm: llm.calls.append("end"))
    monkeypatch.setattr(VllmEngine, "_write", lambda self, requests: recorded.calls.append("write") or [[]])
    return recorded


def make(model: PreTrainedModel, settings: VllmConfig | None = None, processes: int = 1) -> VllmEngine:
    return VllmEngine(
        model,
        settings or VllmConfig(),
        MemoryPlan(1, 1, 1, 1, 1, 10),
        end_token_ids=[2],
        max_model_len=64,
        dtype=torch.float32,
        device="cuda",
        processes=processes,
    )


@pytest.fixture
def engine(model: PreTrainedModel, llm: RecordingLlm) -> Iterator[VllmEngine]:
    made = make(model)
    yield made
    made.close()


def test_a_sleeping_engine_sleeps_through_syncs_and_wakes_with_the_last_weights(
    engine: VllmEngine, model: PreTrainedModel, llm: RecordingLlm
) -> None:
    engine.generate(REQUESTS)
    assert llm.calls == [*LOADED, "write"]
    llm.calls.clear()
    engine.sleep()
    engine.sleep()
    for value in (1.0, 2.0):
        with torch.no_grad():
            next(model.parameters()).fill_(value)
        engine.sync(model)
    assert llm.calls == ["sleep 2"]  # the sync wakes nothing
    engine.generate(REQUESTS)
    # Weights before the cache, so that both are there together only when they must be.
    assert llm.calls == ["sleep 2", "wake weights", *LOADED, "wake kv_cache", "write"]
    assert llm.first_weight == 2.0
    llm.calls.clear()
    engine.generate(REQUESTS)
    assert llm.calls == ["write"]


def test_an_engine_that_is_awake_takes_weights_over_at_once(
    engine: VllmEngine, model: PreTrainedModel, llm: RecordingLlm
) -> None:
    engine.sync(model)
    assert llm.calls == LOADED


def test_an_engine_that_may_not_sleep_stays_awake(model: PreTrainedModel, llm: RecordingLlm) -> None:
    engine = make(model, VllmConfig(sleep=False))
    engine.sleep()
    engine.generate(REQUESTS)
    assert llm.calls == [*LOADED, "write"]
    engine.close()


def test_vllm_runs_on_the_device_of_whoever_calls(
    model: PreTrainedModel, llm: RecordingLlm, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's launcher chose it, whatever LOCAL_RANK says or no longer says."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    engine = make(model, processes=4)  # starts at its first use, when the trainer has its device
    cuda.set_device(3)
    engine.generate(REQUESTS)
    engine.sleep()
    engine.close()
    assert set(cuda.synchronized) == {3}


@pytest.mark.parametrize(
    ("environment", "processes", "rank"),
    [
        ({}, 1, 0),
        ({"SLURM_LOCALID": "2"}, 1, 0),  # one of several runs of a Slurm step, each with a GPU of its own
        ({}, 4, 0),  # Lightning's own launcher: the first process
        ({"LOCAL_RANK": "3"}, 4, 3),  # its children, and torchrun
        ({"SLURM_LOCALID": "2", "SLURM_PROCID": "6"}, 8, 2),  # the second node of a Slurm job
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 2, 1),  # torchrun inside of a Slurm job
    ],
)
def test_every_launcher_says_the_rank_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], processes: int, rank: int
) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_rank(processes) == rank
