"""vLLM in the policy's own process: one engine per process, or one for several processes that share its weights."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from grace_exp.config.vllm import VllmConfig
from grace_exp.config.vllm_package import vllm_problem
from grace_exp.errors import GraceError, MissingResourceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.agreement import probe
from grace_exp.rollout.vllm.isolation import TimedThread, undisturbed
from grace_exp.rollout.vllm.llm import end_llm, make_llm
from grace_exp.rollout.vllm.memory import MemoryPlan
from grace_exp.rollout.vllm.one_token_more import marked, without_it
from grace_exp.rollout.vllm.requests import check_lengths, completions, sampling_settings
from grace_exp.rollout.vllm.weights import checkpoint_weights, save_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")


class VllmEngine:
    """Writes rationales with vLLM, with the weights of the last `sync`."""

    pools_states = True

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
        """Start an engine; at its first call it takes over the weights that `model` has then.

        In a run of several processes it starts at its first use, when the processes have connected.

        Args:
            model: A causal language model, with or without peft adapters.
            settings: Settings of vLLM.
            memory: The memory it may use.
            end_token_ids: Tokens that end a rationale.
            max_model_len: Longest prompt plus longest rationale, tokens.
            dtype: Precision of its weights and cache.
            device: `cpu` or `cuda`.
            processes: Number of processes of the run.

        Raises:
            MissingResourceError: vLLM is not installed, or its version is not supported.
            GraceError: It does not start.
        """
        if problem := vllm_problem("cpu" if device == "cpu" else "gpu"):
            raise MissingResourceError(f"rollout=vllm: {problem}")
        self._model: nn.Module = model
        self._settings = settings
        self._memory = memory
        self._end_token_ids = tuple(end_token_ids)
        self._max_model_len = max_model_len
        self.dtype = dtype
        self._device = device
        self._adapters = settings.lora == "adapter"
        self._scratch = tempfile.TemporaryDirectory(prefix="grace-exp-vllm-")
        self._thread = TimedThread("vllm")
        self._llm: Any = None
        self._states: Any = None
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
        """Return the completions of every request, in order.

        Raises:
            GraceError: vLLM failed, took longer than `generate_timeout`, or cannot hold a sequence of this length.
        """
        check_lengths(requests, self._max_model_len)
        if not self._synced or self._asleep:
            self._load()
        return self._call(
            lambda: self._write(requests),
            self._settings.generate_timeout,
            "writing rationales",
            "raise rollout.vllm.generate_timeout if it was at work, or lower rollout.max_tokens; a GPU that hangs "
            "shows in nvidia-smi",
        )

    def sync(self, model: nn.Module) -> None:
        """Copy the model's present weights, and empty the prefix cache, which belongs to older ones.

        An engine that sleeps is not woken: it copies the weights at the next `generate`.

        Raises:
            GraceError: vLLM failed, took longer than `sync_timeout`, or its log-probs disagree with the model's
                (`rollout.vllm.probe`).
        """
        self._model = model
        if self._asleep:
            self._synced = False
        else:
            self._load()

    def _load(self) -> None:
        if self._llm is None:
            self._start()
        self._call(
            lambda: self._take_over(self._model),
            self._settings.sync_timeout,
            "taking over new weights",
            "raise rollout.vllm.sync_timeout if the model is large; with several processes, look for one that stopped",
        )
        self._synced = True
        if self._settings.probe:
            causal_lm: Any = self._model
            probe(self.generate, causal_lm, max_model_len=self._max_model_len, dtype=self.dtype)

    def sleep(self) -> None:
        """Free the device's memory until the next `generate` (CUDA only)."""
        if self._device == "cpu" or not self._settings.sleep or self._llm is None or self._asleep:
            return
        # Weights that waking up replaces are dropped; the others are kept in the host's memory.
        level = 1 if self._adapters else 2
        self._call(
            lambda: self._llm.sleep(level=level),
            self._settings.sync_timeout,
            "giving memory back",
            "set rollout.vllm.sleep=false",
        )
        self._asleep = True

    def close(self) -> None:
        """End the engine and free its memory."""
        if self._llm is not None and not self._thread.stuck:
            self._call(self._end, self._settings.sync_timeout, "its end", "the process can be ended")
        self._thread.close()
        self._scratch.cleanup()

    # ---- on the engine's thread -----------------------------------------------------------------------------------

    def _start(self) -> None:
        folder = Path(self._scratch.name) / "model"
        self._llm, self._states = self._call(
            lambda: make_llm(
                self._model,
                self._settings,
                self._memory,
                folder=folder,
                max_model_len=self._max_model_len,
                dtype=self.dtype,
                device=self._device,
            ),
            self._settings.start_timeout,
            "its start",
            "raise rollout.vllm.start_timeout if the machine is slow, or look into what VLLM_LOGGING_LEVEL=INFO tells",
        )

    def _end(self) -> None:
        llm, self._llm, self._states = self._llm, None, None
        end_llm(llm)

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
        self._states.forget()
        if self._asleep:
            llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def _load_adapter(self, model: Any) -> None:
        from vllm.lora.request import LoRARequest

        # A new name and number each time: vLLM keeps what it has loaded under an old one.
        self._lora_count += 1
        folder = Path(self._scratch.name) / f"adapter-{self._lora_count}"
        save_adapter(model, folder)
        adapter = LoRARequest(folder.name, self._lora_count, str(folder))
        if self._lora is not None:
            self._llm.llm_engine.remove_lora(self._lora.lora_int_id)
            shutil.rmtree(self._lora.lora_path)
        self._llm.llm_engine.add_lora(adapter)
        self._lora = adapter

    def _write(self, requests: Sequence[Request]) -> list[list[Completion]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        all_requests, own_places = self._shared(requests)
        if not all_requests:
            return []
        pooled = [number for number, request in enumerate(all_requests) if self._pools(request)]
        self._states.begin(
            [all_requests[number].prompt_ids for number in pooled],
            [pooling for number in pooled if (pooling := all_requests[number].pooling) is not None],
        )
        settings = [sampling_settings(request, self._end_token_ids) for request in all_requests]
        for mark, number in enumerate(pooled):
            length = len(all_requests[number].prompt_ids)
            settings[number] = marked(settings[number], mark, self._max_model_len, length)
        # These requests come first, so that tokens that prompts share are computed for one whose states are kept.
        marks = {number: mark for mark, number in enumerate(pooled)}
        order = [*pooled, *(number for number in range(len(all_requests)) if number not in marks)]
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(all_requests[number].prompt_ids)) for number in order],
            [SamplingParams(**settings[number]) for number in order],
            lora_request=self._lora,
            use_tqdm=False,
        )
        answers: dict[int, list[Completion]] = {}
        for number, output in zip(order, outputs, strict=True):
            request, written = all_requests[number], [_tokens(sample) for sample in output.outputs]
            if number in marks:
                plain = without_it(request, written[0], self._end_token_ids)
                answers[number] = [replace(plain, pooled=self._states.found(marks[number], len(plain.token_ids)))]
            else:
                answers[number] = completions(request, written, self._end_token_ids)
        return [answers[number] for number in range(len(all_requests))][own_places]

    def _pools(self, request: Request) -> bool:
        """Whether states are collected: only those of the last layer, and of requests for one rationale."""
        if request.pooling is None or request.n > 1:
            return False
        layers = self._model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
        return bool(request.pooling.layer in (-1, layers))

    def _shared(self, requests: Sequence[Request]) -> tuple[Sequence[Request], slice]:
        """Return all requests of the processes that share the engine, and which of them are this process's.

        All these processes must ask for the same in the same order.
        """
        if self._settings.tensor_parallel == 1:
            return requests, slice(None)
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        parts: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(parts, list(requests), group=group.cpu_group)
        start = sum(len(part) for part in parts[: group.rank_in_group])
        return [request for part in parts for request in part], slice(start, start + len(requests))

    def _call(self, function: Callable[[], Result], seconds: float, what: str, hint: str) -> Result:
        device = torch.cuda.current_device() if self._device == "cuda" else None  # every thread has its own

        def run() -> Result:
            if device is not None:
                torch.cuda.set_device(device)
                torch.cuda.synchronize()  # wait for what the policy's thread has started
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


def _tokens(output: Any) -> tuple[list[int], list[float]]:
    """Return the token ids and log-probs of one of vLLM's completions."""
    token_ids = list(output.token_ids)
    if not token_ids:
        raise GraceError(f"vLLM gave a request up (finish reason {output.finish_reason!r}): see its log")
    pairs = zip(output.logprobs, token_ids, strict=True)
    return token_ids, [position[token].logprob for position, token in pairs]
