"""The command that starts a run's own server."""

from pathlib import Path

import pytest
import torch

from grace_exp.config.vllm import VllmConfig, VllmServerConfig
from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.server_command import serve_command


def visible(devices: str, device: str = "cuda") -> str | None:
    settings = VllmConfig(server=VllmServerConfig(devices=devices))
    options = {"max_model_len": 64, "dtype": torch.bfloat16, "port": 8000, "kv_cache": None, "lora_rank": None}
    _, environment = serve_command(Path("model"), settings, device=device, **options)
    return environment.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("seen", "devices", "shown"),
    [
        (None, "4,5", "4,5"),
        ("4,5,6,7", "2", "6"),  # the run has a part of the machine; its trainer is on 4 and 5
        ("GPU-1a,GPU-2b", "1", "GPU-2b"),
        ("0,1", "GPU-9c", "GPU-9c"),
    ],
)
def test_the_servers_gpus_are_counted_among_those_that_the_run_sees(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, devices: str, shown: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert visible(devices) == shown
    assert visible(devices, "cpu") is None


def test_a_gpu_beyond_those_that_the_run_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match=r"devices=2: the run sees 2 GPU\(s\), CUDA_VISIBLE_DEVICES=4,5"):
        visible("2")
