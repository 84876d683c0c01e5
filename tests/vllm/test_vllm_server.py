"""vLLM over HTTP, on loopback."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.config.vllm import VllmConfig, VllmServerConfig
from grace_exp.errors import ConfigError, GraceError, MissingResourceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.in_process import VllmEngine
from grace_exp.rollout.vllm.server import VllmServerEngine

TOLERANCE = 1e-4
MAX_MODEL_LEN = 160
SETTINGS = VllmConfig(max_sequences=64)


def connect(model: PreTrainedModel, settings: VllmConfig, folder: Path, **changed: Any) -> VllmServerEngine:
    arguments: dict[str, Any] = {
        "end_token_ids": (2, *range(40, 100)),
        "max_model_len": MAX_MODEL_LEN,
        "kv_cache": 64 << 20,
        "dtype": torch.float32,
        "device": "cpu",
        "log": folder / "server.log",
    }
    return VllmServerEngine(model, settings, **arguments | changed)


@pytest.fixture(scope="module")
def shared_server(
    shared_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServerEngine]:
    """A server that the run starts."""
    engine = connect(shared_model, SETTINGS, tmp_path_factory.mktemp("server"))
    yield engine
    engine.close()


@pytest.fixture
def server(shared_server: VllmServerEngine, shared_model: PreTrainedModel) -> VllmServerEngine:
    """The shared server with the shared model's weights."""
    shared_server.sync(shared_model)
    return shared_server


def tokens(answers: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    """Log-probs differ in the last digit with what a server happens to compute together."""
    return [[completion.token_ids for completion in answer] for answer in answers]


def _named(server: VllmServerEngine, **changed: Any) -> VllmConfig:
    """Settings that name this server."""
    return replace(SETTINGS, server=VllmServerConfig(url=server._client.url), **changed)


def processes_of(server: VllmServerEngine) -> list[int]:
    """The guard's child and all in its process group."""
    assert server._process is not None
    guard, found = server._process.pid, []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent, group = fields[0], int(fields[1]), int(fields[2])
        if state != "Z":
            found.append((int(entry.parent.name), parent, group))
    leaders = {pid for pid, parent, _ in found if parent == guard}
    return [pid for pid, _, group in found if group in leaders]


def test_rationales_are_those_of_the_engine_in_process(
    server: VllmServerEngine,
    engine: VllmEngine,
    shared_model: PreTrainedModel,
    requests: list[Request],
    worst: Any,
) -> None:
    answers = server.generate(requests)
    assert worst(shared_model, requests, answers) < TOLERANCE
    assert tokens(answers) == tokens(engine.generate(requests))


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora-merged"])
def test_five_optimizer_steps_reach_the_server_at_the_sync_and_not_before(
    server: VllmServerEngine,
    model: PreTrainedModel,
    requests: list[Request],
    worst: Any,
    five_updates: Any,
    with_adapters: Any,
    adapters: bool,
) -> None:
    policy = with_adapters(model) if adapters else model
    server.sync(policy)
    before = server.generate(requests)
    assert worst(policy, requests, before) < TOLERANCE
    five_updates(policy)
    assert tokens(server.generate(requests)) == tokens(before)
    server.sync(policy)
    after = server.generate(requests)  # long prompts among them: the prefix cache is fresh
    assert worst(policy, requests, after) < TOLERANCE
    assert tokens(after) != tokens(before)


def test_log_probs_that_are_not_finite_are_passed_on(
    server: VllmServerEngine, model: PreTrainedModel, requests: list[Request]
) -> None:
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    server.sync(model)
    (answer,) = server.generate(requests[:1])
    assert np.isnan([value for completion in answer for value in completion.logprobs]).all()


def test_a_user_may_name_a_server_that_runs(
    server: VllmServerEngine, shared_model: PreTrainedModel, tmp_path: Path, requests: list[Request], worst: Any
) -> None:
    named = connect(shared_model, _named(server, probe=True), tmp_path)
    assert worst(shared_model, requests, named.generate(requests)) < TOLERANCE
    named.close()
    assert server._client.healthy()  # it is the user's


def test_a_call_that_takes_too_long_fails_in_time(server: VllmServerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_settings", replace(SETTINGS, generate_timeout=0.05))
    with pytest.raises(GraceError, match=r"has not answered /inference/v1/generate within 0.05 s"):
        server.generate([Request((5,) * 20, 8, 100, 1.0, seed) for seed in range(40)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_model_len": 500}, r"it has max_model_len=160\. Start it with\n  VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"dtype": torch.bfloat16}, "dtype='torch.float32'"),
        ({"device": "cuda"}, "weight transfer back end 'grace_exp'"),
        ({"lora": "adapter"}, "no LoRA"),
    ],
)
def test_a_server_that_gives_something_else_is_refused(
    server: VllmServerEngine, shared_model: PreTrainedModel, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    settings = _named(server, **({"lora": changed.pop("lora")} if "lora" in changed else {}))
    with pytest.raises(ConfigError, match=message):
        connect(shared_model, settings, tmp_path, **changed)


def test_a_server_that_is_not_there_is_told_with_the_command_that_starts_one(
    shared_model: PreTrainedModel, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, server=VllmServerConfig(url="http://127.0.0.1:9"))
    with pytest.raises(MissingResourceError, match=r"no vLLM server answers .*\n  VLLM_SERVER_DEV_MODE=1 vllm serve"):
        connect(shared_model, settings, tmp_path)


def test_adapters_by_themselves_and_a_server_that_is_killed_while_it_writes(
    model: PreTrainedModel,
    tmp_path: Path,
    requests: list[Request],
    worst: Any,
    five_updates: Any,
    with_adapters: Any,
) -> None:
    policy = with_adapters(model)
    server = connect(policy, replace(SETTINGS, lora="adapter"), tmp_path)
    try:
        before = server.generate(requests)
        assert worst(policy, requests, before) < TOLERANCE
        five_updates(policy)
        assert tokens(server.generate(requests)) == tokens(before)
        server.sync(policy)
        after = server.generate(requests)
        assert worst(policy, requests, after) < TOLERANCE
        assert tokens(after) != tokens(before)

        found = processes_of(server)
        assert len(found) >= 2  # the server and its engine
        monkey = threading.Timer(0.5, lambda: os.kill(found[0], signal.SIGKILL))
        monkey.start()
        with pytest.raises(
            GraceError, match=r"the vLLM server is gone \(killed by signal 9\): the end of .*server.log"
        ):
            for _ in range(200):
                server.generate([Request((5,) * 20, 8, 100, 1.0, seed) for seed in range(40)])
        deadline = time.monotonic() + 30
        while processes_of(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in found if Path(f"/proc/{pid}").exists()]
    finally:
        server.close()
