"""The command that starts a server for training, and the check that a running server fits."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from grace_exp.config.vllm import VllmConfig
from grace_exp.config.vllm_package import unsupported
from grace_exp.errors import ConfigError, MissingResourceError
from grace_exp.rollout.vllm.client import RefusedByServer, ServerGone, VllmClient
from grace_exp.rollout.vllm.constants import BLOCK_TOKENS, CPU_NORM_PRIORITY
from grace_exp.rollout.vllm.llm import lora_rank_setting, runs_eagerly
from grace_exp.rollout.vllm.memory import BATCHED_TOKENS

_EXTENSION = "grace_exp.rollout.vllm.worker.WorkerExtension"
_CHECK_SECONDS = 120.0
_DEVELOPMENT = "VLLM_SERVER_DEV_MODE"
_NOT_FOUND = 404


def serve_command(
    folder: Path,
    settings: VllmConfig,
    *,
    max_model_len: int,
    dtype: torch.dtype,
    device: str,
    port: int,
    kv_cache: int | None,
    lora_rank: int | None,
) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of a server.

    Args:
        folder: Folder with the model's configuration; with `lora_rank` also its weights, otherwise the first sync sends
            them.
        settings: Settings of vLLM.
        max_model_len: Longest prompt plus longest rationale, tokens.
        dtype: Precision of weights and cache.
        device: `cpu` or `cuda`.
        port: The port to listen on.
        kv_cache: Bytes of the key-value cache; None: vLLM decides.
        lora_rank: Rank of the adapters, if they are sent separately.
    """
    arguments = [
        *_needed_arguments(max_model_len, dtype, device, lora_rank),
        *("--host", settings.server.host, "--port", str(port)),
        *("--load-format", "dummy" if lora_rank is None else "auto"),
        *("--max-num-seqs", str(settings.max_sequences)),
        *("--max-num-batched-tokens", str(max(BATCHED_TOKENS, settings.max_sequences))),
        *("--block-size", str(BLOCK_TOKENS)),
        *("--tensor-parallel-size", str(settings.tensor_parallel)),
        *(("--kv-cache-memory-bytes", str(kv_cache)) if kv_cache is not None else ()),
        "--disable-uvicorn-access-log",
    ]
    if runs_eagerly(settings, device):
        arguments.append("--enforce-eager")
    environment = {
        _DEVELOPMENT: "1",  # enables the endpoints that change weights
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",  # the server has its own log file
    }
    if device == "cpu":
        arguments += ["--ir-op-priority", json.dumps(CPU_NORM_PRIORITY)]
    if device == "cpu" and settings.tensor_parallel == 1:
        # One process fewer saves half a minute at the start.
        arguments += ["--distributed-executor-backend", "uni"]
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = _visible(settings.server.device_list)
    # The function behind `vllm serve`; the command itself fails in the CPU build (it asks for the version of "vllm").
    program = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(folder)]
    return [*program, *arguments], environment


def _visible(devices: Sequence[str]) -> str:
    """Return the server's CUDA_VISIBLE_DEVICES; numbers count the GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = visible.split(",") if visible is not None else None
    if seen is None:
        return ",".join(devices)
    if beyond := [device for device in devices if device.isdecimal() and int(device) >= len(seen)]:
        raise ConfigError(
            f"rollout.vllm.server.devices={beyond[0]}: the run sees {len(seen)} GPU(s), "
            f"CUDA_VISIBLE_DEVICES={visible}; show it more, or choose another"
        )
    return ",".join(seen[int(device)] if device.isdecimal() else device for device in devices)


def check_server(
    client: VllmClient, settings: VllmConfig, *, max_model_len: int, dtype: torch.dtype, device: str
) -> None:
    """Check that the user's server can be trained with.

    Raises:
        MissingResourceError: No server answers, its version is not supported, or it does not let weights be changed.
        ConfigError: It was started with settings that give other log-probs or shorter sequences.
    """
    lora_rank = None if settings.lora == "merged" else 64
    arguments = shlex.join(_needed_arguments(max_model_len, dtype, device, lora_rank))
    start = f"Start it with\n  {_DEVELOPMENT}=1 vllm serve MODEL {arguments}"
    try:
        version = client.get("/version", seconds=_CHECK_SECONDS)["version"]
        if problem := unsupported(version):
            raise MissingResourceError(f"rollout.vllm.server.url={client.url}: {problem}")
        config = client.get("/server_info", seconds=_CHECK_SECONDS, params={"config_format": "json"})["vllm_config"]
    except ServerGone as error:
        raise MissingResourceError(f"rollout.vllm.server.url={client.url}: {error}. {start}") from error
    except RefusedByServer as error:
        if error.status != _NOT_FOUND:
            raise
        raise MissingResourceError(
            f"rollout.vllm.server.url={client.url}: it has no endpoints for weights, so it would keep its "
            f"present ones. {start}"
        ) from error
    model = config["model_config"]
    transfer = (config.get("weight_transfer_config") or {}).get("backend")
    wanted = _backend(device)
    problems = [
        message
        for broken, message in (
            (model["logprobs_mode"] != "processed_logprobs", f"logprobs_mode={model['logprobs_mode']!r}"),
            (model["max_model_len"] < max_model_len, f"max_model_len={model['max_model_len']}"),
            (
                model["generation_config"] != "vllm",
                f"generation_config={model['generation_config']!r}, which may change what is sampled",
            ),
            (str(dtype) != model["dtype"], f"dtype={model['dtype']!r}"),
            (settings.lora == "merged" and transfer != wanted, f"weight transfer back end {transfer!r}"),
            (settings.lora == "adapter" and not config.get("lora_config"), "no LoRA"),
        )
        if broken
    ]
    if problems:
        raise ConfigError(f"rollout.vllm.server.url={client.url}: it has {', '.join(problems)}. {start}")


def _needed_arguments(max_model_len: int, dtype: torch.dtype, device: str, lora_rank: int | None) -> list[str]:
    """Return the arguments on which results depend."""
    lora: Sequence[str] = ()
    if lora_rank is not None:
        lora = ("--enable-lora", "--max-loras", "1", "--max-lora-rank", str(lora_rank_setting(lora_rank)))
    return [
        "--tokens-only",
        *("--max-model-len", str(max_model_len)),
        *("--dtype", str(dtype).split(".")[-1]),
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        *("--worker-extension-cls", _EXTENSION),
        *("--weight-transfer-config", json.dumps({"backend": _backend(device)})),
        *lora,
    ]


def _backend(device: str) -> str:
    return "grace_exp" if device == "cpu" else "nccl"
