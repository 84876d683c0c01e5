"""Build a vLLM engine from the settings of a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from grace_exp.config.engine_use import sequences_at_once
from grace_exp.config.root import GraceConfig
from grace_exp.config.vllm import VllmConfig
from grace_exp.policy.model_checks import check_positions
from grace_exp.rollout.longest import longest_tokens
from grace_exp.rollout.vllm.in_process import VllmEngine
from grace_exp.rollout.vllm.llm import local_rank, runs_eagerly
from grace_exp.rollout.vllm.memory import (
    GIB,
    MemoryPlan,
    available_bytes,
    device_overhead,
    model_shape,
    plan_memory,
    policy_bytes,
    weight_copies,
)
from grace_exp.rollout.vllm.server import VllmServerEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_vllm(config: GraceConfig, model: "PreTrainedModel", end_token_ids: Sequence[int]) -> VllmEngine:
    """Return the engine in process, for `rollout=vllm`.

    Raises:
        ConfigError: It does not fit into the device's memory, or the run needs longer sequences than the model reads.
        GraceError: It does not start.
    """
    device = _device(config)
    return VllmEngine(
        model,
        _settings(config),
        _memory(config, model, device),
        end_token_ids=end_token_ids,
        max_model_len=longest_sequence(config, model),
        dtype=_dtype(config),
        device=device,
        processes=config.processes,
    )


def build_vllm_server(
    config: GraceConfig, model: "PreTrainedModel", end_token_ids: Sequence[int], *, first: bool
) -> VllmServerEngine:
    """Return the engine over HTTP, for `rollout=vllm_server`.

    Args:
        config: The run's settings.
        model: The policy.
        end_token_ids: Tokens that end a rationale.
        first: Whether this process starts the server.

    Raises:
        ConfigError: The run needs longer sequences than the model reads, or the port is taken.
        GraceError: There is no server, or it cannot be trained with.
    """
    device, vllm = _device(config), _settings(config)
    kv_cache = None if vllm.kv_cache_gib is None else int(vllm.kv_cache_gib * GIB)
    if kv_cache is None and device == "cpu" and vllm.server.url is None:
        kv_cache = _memory(config, model, device).kv_cache  # vLLM would take all memory by default
    return VllmServerEngine(
        model,
        vllm,
        end_token_ids=end_token_ids,
        max_model_len=longest_sequence(config, model),
        kv_cache=kv_cache,
        dtype=_dtype(config),
        device=device,
        log=Path(config.run_dir) / "vllm_server.log",
        first=first,
    )


def longest_sequence(config: GraceConfig, model: "PreTrainedModel") -> int:
    """Return the longest prompt plus the longest rationale that the run can ask for, in tokens.

    Raises:
        ConfigError: The model reads only shorter sequences.
    """
    longest = longest_tokens(config)
    check_positions(model.config, config.backbone.name, longest)
    return longest.tokens


def _device(config: GraceConfig) -> Literal["cpu", "cuda"]:
    return "cuda" if config.hardware.accelerator == "gpu" else "cpu"


def _settings(config: GraceConfig) -> VllmConfig:
    """Return settings with room for as many sequences as the run asks for: each takes cache and sampling memory."""
    return replace(config.rollout.vllm, max_sequences=sequences_at_once(config))


def _dtype(config: GraceConfig) -> torch.dtype:
    wanted = config.rollout.vllm.dtype
    if wanted == "auto":
        wanted = "bfloat16" if config.hardware.precision.startswith("bf16") else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _memory(config: GraceConfig, model: "PreTrainedModel", device: Literal["cpu", "cuda"]) -> MemoryPlan:
    vllm = _settings(config)
    place = torch.device(device, local_rank(config.processes) if device == "cuda" else 0)
    return plan_memory(
        model_shape(model),
        value_bytes=_dtype(config).itemsize,
        max_model_len=longest_sequence(config, model),
        max_sequences=vllm.max_sequences,
        available=available_bytes(place),
        policy=policy_bytes(
            model,
            device,
            trains=config.job.name == "train",
            shards=config.processes if config.hardware.strategy == "fsdp2" else 1,
        ),
        overhead=device_overhead(device, processes=config.processes, eager=runs_eagerly(vllm, device)),
        tensor_parallel=vllm.tensor_parallel,
        copies=weight_copies(device),
        kv_cache=None if vllm.kv_cache_gib is None else int(vllm.kv_cache_gib * GIB),
        kept_free=0.5,  # the policy's forwards need room while the engine is awake; on CPUs other programs need it too
    )
