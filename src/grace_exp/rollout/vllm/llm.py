"""Make and end vLLM's engine object inside a process that it does not own."""

import gc
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace_exp.config.vllm import VllmConfig
from grace_exp.rollout.vllm import one_token_more
from grace_exp.rollout.vllm.constants import BLOCK_TOKENS, CPU_NORM_PRIORITY
from grace_exp.rollout.vllm.memory import BATCHED_TOKENS, MemoryPlan
from grace_exp.rollout.vllm.runner_states import RunnerStates
from grace_exp.rollout.vllm.weights import write_model_folder

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM allows for `max_lora_rank`."""


class _SharedState:
    """The process group that vLLM makes if there is none; the last engine of the process ends it."""

    def __init__(self) -> None:
        self.engines = 0
        self.made_group = False

    def enter(self) -> None:
        self.made_group |= not torch.distributed.is_initialized()
        self.engines += 1

    def leave(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.engines -= 1
        if self.made_group and not self.engines:
            cleanup_dist_env_and_memory()
            self.made_group = False


_SHARED = _SharedState()


def make_llm(
    model: nn.Module,
    settings: VllmConfig,
    memory: MemoryPlan,
    *,
    folder: Path,
    max_model_len: int,
    dtype: torch.dtype,
    device: str,
) -> tuple[Any, RunnerStates]:
    """Return a `vllm.LLM` for `model`, and the object that pools hidden states in this process's worker.

    Args:
        model: The policy. Its weights are sent later, except the base weights if adapters are sent separately.
        settings: Settings of vLLM.
        memory: The memory it may use.
        folder: Folder for the model's configuration.
        max_model_len: Longest prompt plus longest rationale, tokens.
        dtype: Precision of weights and cache.
        device: `cpu` or `cuda`.
    """
    # Read at import. Worker processes would cost half a minute, and tensors cannot be sent to them.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the policy needs the cores too
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    adapters = settings.lora == "adapter"
    write_model_folder(model, folder, weights=adapters, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's warnings about its own code
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from grace_exp.rollout.vllm import worker

        worker.prepare()
        current_platform.simple_compile_backend = "eager"  # compiling one small function takes longer than it saves
        _SHARED.enter()
        llm = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="auto" if adapters else "dummy",
            dtype=str(dtype).split(".")[-1],
            max_model_len=max_model_len,
            max_num_seqs=settings.max_sequences,
            max_num_batched_tokens=max(BATCHED_TOKENS, settings.max_sequences),
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=memory.kv_cache,
            enable_prefix_caching=True,
            enforce_eager=runs_eagerly(settings, device),
            use_tqdm_on_load=False,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            generation_config="vllm",  # without the sampling settings in the model's files
            weight_transfer_config=WeightTransferConfig(backend=worker.BACKEND),
            **_device_arguments(settings, memory, device),
            **_placement(settings),
            **_lora_arguments(model if adapters else None),
        )
        llm.init_weight_transfer_engine({"init_info": {}})
        one_token_more.prepare()
        (states,) = llm.collective_rpc(lambda worker: RunnerStates(worker.model_runner))
    return llm, states


def end_llm(llm: Any) -> None:
    """End an engine and free its memory; no other object may hold the engine."""
    from vllm.v1.engine import core

    # vLLM would also end process groups that are not its own: those of the run, and those of another engine.
    clean_up, core.cleanup_dist_env_and_memory = core.cleanup_dist_env_and_memory, lambda: None
    try:
        llm.llm_engine.engine_core.shutdown()
    finally:
        core.cleanup_dist_env_and_memory = clean_up
    del llm
    _SHARED.leave()
    gc.collect()


def runs_eagerly(settings: VllmConfig, device: str) -> bool:
    """Whether vLLM runs without compilation and CUDA graphs."""
    return device == "cpu" if settings.eager is None else settings.eager


def local_rank(processes: int) -> int:
    """Return the number of this process's GPU on its machine; it is known before Lightning sets the device.

    torchrun and Lightning's launcher set it in LOCAL_RANK, Slurm in SLURM_LOCALID.

    Args:
        processes: Number of processes of the run; a single process takes the first GPU, wherever it was started.
    """
    if processes == 1:
        return 0
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0")


def _device_arguments(settings: VllmConfig, memory: MemoryPlan, device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"ir_op_priority": CPU_NORM_PRIORITY}
    _, total = torch.cuda.mem_get_info()  # of this thread's device
    return {
        # vLLM checks this share against the free memory at the start; `kv_cache_memory_bytes` sets the size of the
        # cache.
        "gpu_memory_utilization": memory.engine / total,
        "enable_sleep_mode": settings.sleep,
    }


def _placement(settings: VllmConfig) -> dict[str, Any]:
    """Return the arguments for an engine in this process, or for this process's part of a shared engine."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return {}
    # vLLM joins the existing process group, as under torchrun, whose variables it reads.
    rank, world = group.get_rank(), group.get_world_size()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ["LOCAL_RANK"] = str(local_rank(world))
    return {
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": settings.tensor_parallel,
    }


def _lora_arguments(model: Any) -> dict[str, Any]:
    if model is None:
        return {}
    rank = max(settings.r for settings in model.peft_config.values())
    return {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": lora_rank_setting(rank)}


def lora_rank_setting(rank: int) -> int:
    """Return the least `max_lora_rank` that vLLM allows for adapters of this rank."""
    return min(allowed for allowed in _LORA_RANKS if allowed >= rank)
