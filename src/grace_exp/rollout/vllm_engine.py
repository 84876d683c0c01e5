"""vLLM in the policy's own process: one engine a process, or one for several of them that share its weights."""

import gc
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from grace_exp.config.vllm import VllmConfig
from grace_exp.config.vllm_package import vllm_problem
from grace_exp.errors import GraceError, MissingResourceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm_isolation import TimedThread, undisturbed
from grace_exp.rollout.vllm_memory import BATCHED_TOKENS, MemoryPlan
from grace_exp.rollout.vllm_probe import probe
from grace_exp.rollout.vllm_requests import check_lengths, completions, sampling_settings
from grace_exp.rollout.vllm_weights import checkpoint_weights, write_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `max_lora_rank` may be."""
BLOCK_TOKENS = 32
"""Of the key-value cache: small, so that the rationales of a text share its prompt; the CPU kernels like multiples."""


class _SharedState:
    """The process group that vLLM makes where there is none; the process's last engine ends it."""

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


class VllmEngine:
    """Writes rationales with vLLM; its weights are those of the last `sync`."""

    def __init__(
        self,
        model: "PreTrainedModel",
        settings: VllmConfig,
        memory: MemoryPlan,
        *,
        end_token_ids: Sequence[int],
        max_model_len: int,
        dtype: torch.dtype,
        device: str,
        processes: int = 1,
    ) -> None:
        """Start an engine; its first weights are those that `model` has at the first call.

        In a run of several processes it starts at its first use, when they have found each other.

        Args:
            model: A causal language model, with or without peft adapters.
            settings: How to run.
            memory: What it may take.
            end_token_ids: Tokens that end a rationale.
            max_model_len: Longest prompt plus longest rationale, tokens.
            dtype: Of its weights and cache.
            device: `cpu` or `cuda`.
            processes: Of the run.

        Raises:
            MissingResourceError: vLLM is not there, or not a supported version.
            GraceError: It cannot start.
        """
        if problem := vllm_problem("cpu" if device == "cpu" else "gpu"):
            raise MissingResourceError(f"rollout=vllm: {problem}")
        self._model: nn.Module = model
        self._settings = settings
        self._memory = memory
        self._end_token_ids = tuple(end_token_ids)
        self._max_model_len = max_model_len
        self._dtype = dtype
        self._device = device
        self._adapters = settings.lora == "adapter"
        self._scratch = tempfile.TemporaryDirectory(prefix="grace-exp-vllm-")
        self._thread = TimedThread("vllm")
        self._llm: Any = None
        self._synced = False
        self._asleep = False
        self._lora: Any = None
        self._lora_count = 0
        if processes == 1:
            try:
                self._start()
            except BaseException:
                self.close()
                raise

    # ---- the protocol ---------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answer every request, in order.

        Raises:
            GraceError: vLLM failed, took longer than `generate_timeout`, or a sequence would be too long for it.
        """
        check_lengths(requests, self._max_model_len)
        if not self._synced or self._asleep:
            self.sync(self._model)
        return self._call(
            lambda: self._write(requests),
            self._settings.generate_timeout,
            "writing rationales",
            "raise rollout.vllm.generate_timeout if it was at work, or lower rollout.max_tokens; a GPU that hangs "
            "shows in nvidia-smi",
        )

    def sync(self, model: nn.Module) -> None:
        """Take over the model's present weights and forget what the prefix cache has of older ones.

        Raises:
            GraceError: vLLM failed, took longer than `sync_timeout`, or its log-probs disagree with the model's
                (`rollout.vllm.probe`).
        """
        if self._llm is None:
            self._start()
        self._model = model
        self._call(
            lambda: self._take_over(model),
            self._settings.sync_timeout,
            "taking over new weights",
            "raise rollout.vllm.sync_timeout if the model is large; with several processes, look for one that stopped",
        )
        self._synced = True
        if self._settings.probe:
            causal_lm: Any = model
            probe(self.generate, causal_lm, max_model_len=self._max_model_len, dtype=self._dtype)

    def sleep(self) -> None:
        """Give the device's memory back until the next `sync` (CUDA; nothing to do elsewhere)."""
        if self._device == "cpu" or not self._settings.sleep or self._llm is None or self._asleep:
            return
        # Weights that the next sync replaces are dropped; those that it leaves alone are kept in the host's memory.
        level = 1 if self._adapters else 2
        self._call(
            lambda: self._llm.sleep(level=level),
            self._settings.sync_timeout,
            "giving memory back",
            "set rollout.vllm.sleep=false",
        )
        self._asleep = True

    def close(self) -> None:
        """End the engine and give its memory back."""
        if self._llm is not None and not self._thread.stuck:
            self._call(self._end, self._settings.sync_timeout, "its end", "the process can be ended")
        self._thread.close()
        self._scratch.cleanup()

    # ---- on the engine's thread -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._llm = self._call(
            self._make,
            self._settings.start_timeout,
            "its start",
            "raise rollout.vllm.start_timeout if the machine is slow, or look into what VLLM_LOGGING_LEVEL=INFO tells",
        )

    def _make(self) -> Any:
        # Read at import. Worker processes of its own would cost half a minute, and tensors do not reach them.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the policy needs the cores too
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's, about its own parts
            return self._make_llm()

    def _make_llm(self) -> Any:
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from grace_exp.rollout import vllm_worker

        vllm_worker.prepare()
        current_platform.simple_compile_backend = "eager"  # compiling one small function takes longer than it saves
        folder = Path(self._scratch.name) / "model"
        write_model_folder(self._model, folder, weights=self._adapters, dtype=self._dtype)
        _SHARED.enter()
        eager = self._device == "cpu" if self._settings.eager is None else self._settings.eager
        llm = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="auto" if self._adapters else "dummy",
            dtype=str(self._dtype).split(".")[-1],
            max_model_len=self._max_model_len,
            max_num_seqs=self._settings.max_sequences,
            max_num_batched_tokens=max(BATCHED_TOKENS, self._settings.max_sequences),
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=self._memory.kv_cache,
            gpu_memory_utilization=min(0.95, self._memory.engine / self._memory.available),
            enable_prefix_caching=True,
            enforce_eager=eager,
            use_tqdm_on_load=False,
            enable_sleep_mode=self._device != "cpu" and self._settings.sleep,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            generation_config="vllm",  # not the model authors' recommendations
            weight_transfer_config=WeightTransferConfig(backend=vllm_worker.BACKEND),
            **self._placement(),
            **_lora_arguments(self._model if self._adapters else None),
        )
        llm.init_weight_transfer_engine({"init_info": {}})
        return llm

    def _placement(self) -> dict[str, Any]:
        """One engine here, or this process's part of those that the run's processes form."""
        group = torch.distributed
        if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
            return {}
        # vLLM joins the process group that is there, as it does under torchrun, whose variables it reads.
        rank, world = group.get_rank(), group.get_world_size()
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ.setdefault("LOCAL_RANK", str(rank))
        return {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": self._settings.tensor_parallel,
        }

    def _take_over(self, model: nn.Module) -> None:
        llm = self._llm
        if self._asleep:
            llm.wake_up(tags=["weights"])
        if self._adapters:
            self._load_adapter(model)
        else:
            llm.start_weight_update()
            weights = checkpoint_weights(model)
            llm.update_weights({"update_info": {"weights": weights}})
            llm.finish_weight_update()
        if not llm.reset_prefix_cache():
            raise GraceError("vLLM could not reset its prefix cache: requests were still under way during a sync")
        if self._asleep:
            llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def _load_adapter(self, model: Any) -> None:
        from vllm.lora.request import LoRARequest

        # A name and number of its own each time: vLLM keeps what it knows under an old one.
        self._lora_count += 1
        folder = Path(self._scratch.name) / f"adapter-{self._lora_count}"
        model.save_pretrained(str(folder))
        adapter = LoRARequest(folder.name, self._lora_count, str(folder))
        if self._lora is not None:
            self._llm.llm_engine.remove_lora(self._lora.lora_int_id)
        self._llm.llm_engine.add_lora(adapter)
        self._lora = adapter

    def _write(self, requests: Sequence[Request]) -> list[list[Completion]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        asked, mine = self._shared(requests)
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in asked],
            [SamplingParams(**sampling_settings(request, self._end_token_ids)) for request in asked],
            lora_request=self._lora,
            use_tqdm=False,
        )
        return [
            completions(request, [_tokens(written) for written in output.outputs], self._end_token_ids)
            for request, output in zip(requests, outputs[mine], strict=True)
        ]

    def _shared(self, requests: Sequence[Request]) -> tuple[Sequence[Request], slice]:
        """All requests of the processes that share the engine, and the place of this process's among them.

        Each must ask for the same in the same order.
        """
        if self._settings.tensor_parallel == 1:
            return requests, slice(None)
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        parts: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(parts, list(requests), group=group.cpu_group)
        start = sum(len(part) for part in parts[: group.rank_in_group])
        return [request for part in parts for request in part], slice(start, start + len(requests))

    def _end(self) -> None:
        from vllm.v1.engine import core

        llm, self._llm = self._llm, None
        # vLLM would take the process's groups with it: those of the run, those of another engine.
        clean_up, core.cleanup_dist_env_and_memory = core.cleanup_dist_env_and_memory, lambda: None
        try:
            llm.llm_engine.engine_core.shutdown()
        finally:
            core.cleanup_dist_env_and_memory = clean_up
        del llm
        _SHARED.leave()
        gc.collect()

    def _call(self, function: Callable[[], Result], seconds: float, what: str, hint: str) -> Result:
        def run() -> Result:
            if self._device == "cuda":
                torch.cuda.set_device(self._cuda_index)
            with torch.no_grad():
                return function()

        try:
            with undisturbed():
                return self._thread.call(run, seconds=seconds, what=what, hint=hint)
        except GraceError:
            raise
        except torch.OutOfMemoryError as error:
            raise GraceError(
                f"vLLM ran out of device memory in {what}: lower rollout.vllm.kv_cache_gib or "
                f"rollout.vllm.max_sequences (planned: {self._memory})"
            ) from error
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise GraceError(f"vLLM failed in {what}: {reason}") from error

    @property
    def _cuda_index(self) -> int:
        return int(os.environ.get("LOCAL_RANK", "0"))


def _tokens(output: Any) -> tuple[list[int], list[float]]:
    """Token ids and log-probs of one of vLLM's completions."""
    token_ids = list(output.token_ids)
    if not token_ids:
        raise GraceError(f"vLLM gave a request up (finish reason {output.finish_reason!r}): see its log")
    pairs = zip(output.logprobs, token_ids, strict=True)
    return token_ids, [position[token].logprob for position, token in pairs]


def _lora_arguments(model: Any) -> dict[str, Any]:
    if model is None:
        return {}
    rank = max(settings.r for settings in model.peft_config.values())
    return {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": lora_rank_setting(rank)}


def lora_rank_setting(rank: int) -> int:
    """The least `max_lora_rank` that vLLM allows for adapters of a rank."""
    return min(allowed for allowed in _LORA_RANKS if allowed >= rank)
