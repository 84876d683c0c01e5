"""vLLM over HTTP: a server that the run starts and ends, or one that the user runs."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grace_exp.config.vllm import VllmConfig
from grace_exp.errors import EngineFailed, GraceError
from grace_exp.rollout.protocol import Completion, Request
from grace_exp.rollout.vllm.agreement import probe
from grace_exp.rollout.vllm.client import RefusedByServer, ServerGone, VllmClient
from grace_exp.rollout.vllm.nccl import NcclTransfer
from grace_exp.rollout.vllm.requests import check_lengths, completions, sampling_settings
from grace_exp.rollout.vllm.server_command import check_server, serve_command
from grace_exp.rollout.vllm.server_process import ServerProcess, choose_port
from grace_exp.rollout.vllm.weights import save_adapter, take_part, write_model_folder, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONTROL_SECONDS = 60.0
_FAILED = 500  # HTTP status: from 500 on the server has failed, below it refuses the request
_NOT_FINITE = -9999.0
"""What a server sends for log-probs of nan and -inf, which JSON cannot express."""


class VllmServerEngine:
    """Writes rationales with a vLLM server, with the weights of the last `sync`.

    In a run of several processes all use the same server, and the first process sends it weights.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        settings: VllmConfig,
        *,
        end_token_ids: Sequence[int],
        max_model_len: int,
        kv_cache: int | None,
        dtype: torch.dtype,
        device: str,
        log: Path,
        first: bool = True,
    ) -> None:
        """Find or start the server; at its first call it gets the weights that `model` has then.

        Args:
            model: A causal language model, with or without peft adapters.
            settings: Settings of vLLM.
            end_token_ids: Tokens that end a rationale.
            max_model_len: Longest prompt plus longest rationale, tokens.
            kv_cache: Bytes of the server's key-value cache; None: vLLM decides.
            dtype: Precision of its weights and cache.
            device: Device of the policy, `cpu` or `cuda`; weights are sent by NCCL or through a file.
            log: File for the output of the run's own server.
            first: Whether this process starts the server.

        Raises:
            GraceError: There is no server, it does not start, or it cannot be trained with.
        """
        self._model: nn.Module = model
        self._settings = settings
        self._end_token_ids = tuple(end_token_ids)
        self._max_model_len = max_model_len
        self.dtype = dtype
        self._adapters = settings.lora == "adapter"
        self._scratch = tempfile.TemporaryDirectory(prefix="grace-exp-vllm-", dir=settings.server.exchange_dir)
        self._exchange = Path(self._scratch.name)
        self._process: ServerProcess | None = None
        self._name: str | None = None
        self._syncs = 0
        try:
            if settings.server.url is not None:
                self._client = VllmClient(settings.server.url)
                check_server(self._client, settings, max_model_len=max_model_len, dtype=dtype, device=device)
            else:
                self._client = self._own_server(model, kv_cache, device, log, first)
        except BaseException:
            self.close()
            raise
        self._nccl = NcclTransfer(self._client, dtype, settings) if device == "cuda" and not self._adapters else None

    # ---- the protocol ---------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the completions of every request, in order.

        Raises:
            GraceError: The server is gone, refused, took longer than `generate_timeout`, or cannot hold a sequence of
                this length.
        """
        check_lengths(requests, self._max_model_len)
        if not self._syncs:
            self.sync(self._model)
        bodies = [
            {
                "model": self._name,
                "token_ids": list(request.prompt_ids),
                "sampling_params": sampling_settings(request, self._end_token_ids),
            }
            for request in requests
        ]
        answers = self._call(
            lambda: self._client.post_all("/inference/v1/generate", bodies, seconds=self._settings.generate_timeout)
        )
        return [
            completions(request, [_tokens(choice) for choice in answer["choices"]], self._end_token_ids)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def sync(self, model: nn.Module) -> None:
        """Send the model's present weights, and let the server empty its prefix cache, which belongs to older ones.

        Raises:
            GraceError: The server is gone, refused, took longer than `sync_timeout`, or its log-probs disagree with the
                model's (`rollout.vllm.probe`).
        """
        self._model = model
        self._syncs += 1
        if _rank() == 0:
            self._call(lambda: self._send(model))
        elif self._adapters:
            save_adapter(model, None)
        else:
            take_part(model)
        if self._adapters:
            self._name = _adapter_name(self._syncs)
        _wait_for_all()
        if self._settings.probe and _rank() == 0:
            causal_lm: Any = model
            probe(self.generate, causal_lm, max_model_len=self._max_model_len, dtype=self.dtype)

    def sleep(self) -> None:
        """Do nothing: the server has its own devices."""

    def close(self) -> None:
        """End the server if the run started it."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._scratch.cleanup()

    # ---- the server -----------------------------------------------------------------------------------------------

    def _own_server(
        self, model: "PreTrainedModel", kv_cache: int | None, device: str, log: Path, first: bool
    ) -> VllmClient:
        server = self._settings.server
        if not first:
            assert server.port is not None  # checked by the configuration
            client = VllmClient(_url(server.host, server.port))
            ServerProcess.wait_for_another(client, self._settings.start_timeout)
            return client
        port = choose_port(server.host, server.port)
        folder = self._exchange / "model"
        write_model_folder(model, folder, weights=self._adapters, dtype=self.dtype)
        command, environment = serve_command(
            folder,
            self._settings,
            max_model_len=self._max_model_len,
            dtype=self.dtype,
            device=device,
            port=port,
            kv_cache=kv_cache,
            lora_rank=_lora_rank(model) if self._adapters else None,
        )
        self._process = ServerProcess(command, environment, log)
        client = VllmClient(_url(server.host, port))
        self._process.wait_until_ready(client, self._settings.start_timeout)
        return client

    def _send(self, model: nn.Module) -> None:
        seconds = self._settings.sync_timeout
        if self._adapters:
            self._send_adapter(model, seconds)
        elif self._nccl is not None:
            self._nccl.send(model)
        else:
            file = self._exchange / f"weights-{self._syncs}.safetensors"
            write_weights(model, file, adapters=True, dtype=self.dtype)
            if self._syncs == 1:
                self._client.post("/init_weight_transfer_engine", {"init_info": {}}, seconds=seconds)
            self._client.post("/start_weight_update", seconds=seconds)
            self._client.post("/update_weights", {"update_info": {"path": str(file)}}, seconds=seconds)
            self._client.post("/finish_weight_update", {}, seconds=seconds)
            file.unlink()
        answer = self._client.post("/reset_prefix_cache", seconds=_CONTROL_SECONDS)
        if not answer["success"]:
            raise GraceError("the vLLM server could not reset its prefix cache: does anyone else use it?")

    def _send_adapter(self, model: Any, seconds: float) -> None:
        # A new name each time: vLLM keeps what it has loaded under an old one.
        name = _adapter_name(self._syncs)
        folder = self._exchange / name
        save_adapter(model, folder)
        self._client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, seconds=seconds)
        if self._syncs > 1:
            old = _adapter_name(self._syncs - 1)
            self._client.post("/v1/unload_lora_adapter", {"lora_name": old}, seconds=seconds)
            shutil.rmtree(self._exchange / old)

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (ServerGone, RefusedByServer) as error:
            if isinstance(error, RefusedByServer) and error.status < _FAILED:
                raise
            if self._process is None:
                raise EngineFailed(str(error)) from error
            status = self._process.exit_status() or "it still runs"
            problem = "the vLLM server is gone" if isinstance(error, ServerGone) else str(error)
            raise EngineFailed(f"{problem} ({status}): {self._process.last_words()}") from error


def _tokens(choice: Any) -> tuple[list[int], list[float]]:
    """Return the token ids and log-probs of one choice of an answer."""
    if not choice["token_ids"]:
        raise GraceError(f"the vLLM server gave a request up (finish reason {choice['finish_reason']!r}): see its log")
    logprobs = [position["logprob"] for position in choice["logprobs"]["content"]]
    return choice["token_ids"], [float("nan") if value <= _NOT_FINITE else value for value in logprobs]


def _adapter_name(number: int) -> str:
    return f"adapter-{number}"


def _lora_rank(model: Any) -> int:
    return max(int(settings.r) for settings in model.peft_config.values())


def _url(host: str, port: int) -> str:
    """Return the URL of a server on `host`, seen from the same machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _rank() -> int:
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


def _wait_for_all() -> None:
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        group.barrier()
