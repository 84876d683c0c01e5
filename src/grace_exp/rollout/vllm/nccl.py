"""Send weights from a CUDA trainer to a vLLM server, GPU to GPU, by vLLM's own transfer."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from grace_exp.config.vllm import VllmConfig
from grace_exp.rollout.vllm.client import VllmClient
from grace_exp.rollout.vllm.isolation import TimedThread, undisturbed
from grace_exp.rollout.vllm.weights import checkpoint_weights, weight_shapes


class NcclTransfer:
    """A communicator with the server's workers; it connects when weights are first sent.

    https://docs.vllm.ai/en/latest/training/weight_transfer/nccl/
    """

    def __init__(self, client: VllmClient, dtype: torch.dtype, settings: VllmConfig) -> None:
        """Prepare the transfer without connecting.

        Args:
            client: Client of the server.
            dtype: Precision in which weights are sent.
            settings: The settings with the time limits.
        """
        self._client = client
        self._dtype = dtype
        self._seconds = settings.sync_timeout
        self._thread = TimedThread("vllm-nccl")
        self._model: nn.Module | None = None
        self._trainer: Any = None

    def send(self, model: nn.Module) -> None:
        """Send the model's present weights.

        Raises:
            GraceError: Sending took too long, or the server refused.
        """
        device = torch.cuda.current_device()

        def run() -> None:
            torch.cuda.set_device(device)
            self._model = model
            if self._trainer is None:
                self._trainer = self._connect()
            torch.cuda.synchronize()  # wait for the optimizer's last kernels, which the policy's thread has started
            self._trainer.send_weights()

        with undisturbed():
            self._thread.call(
                run,
                seconds=self._seconds,
                what="sending weights by NCCL",
                hint="trainer and server need separate GPUs and a network between them (NCCL_DEBUG=INFO tells "
                "which it uses); look into the server's log; raise rollout.vllm.sync_timeout if the model is large",
            )

    def _connect(self) -> Any:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        transfer = self

        class PolicyWeights(WeightSource):  # type: ignore[misc]
            def metadata(self) -> list[Any]:
                assert transfer._model is not None
                return [ParamMeta(name, transfer._dtype, shape) for name, shape in weight_shapes(transfer._model)]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                assert transfer._model is not None
                return checkpoint_weights(transfer._model, dtype=transfer._dtype)

        workers = self._client.get("/get_world_size", seconds=self._seconds)["world_size"]
        address, port = _own_address(self._client.url)
        return WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(address, port, 1 + workers, rank=0),
            client=_ControlPlane(self._client, self._seconds),
            source=PolicyWeights(),
        )


class _ControlPlane:
    """The four calls that vLLM's trainer side makes to a server (`VLLMWeightSyncClient`)."""

    def __init__(self, client: VllmClient, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._client.post("/init_weight_transfer_engine", {"init_info": init_info}, seconds=self._seconds)

    def start_weight_update(self) -> None:
        self._client.post("/start_weight_update", seconds=self._seconds)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._client.post("/update_weights", {"update_info": update_info}, seconds=self._seconds)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._client.post("/finish_weight_update", {"weight_version": weight_version}, seconds=self._seconds)


def _own_address(url: str) -> tuple[str, int]:
    """Return this machine's address as the server sees it, and a free port."""
    server = urlsplit(url)
    family, kind, protocol, _, address = socket.getaddrinfo(
        server.hostname, server.port or 80, type=socket.SOCK_STREAM
    )[0]
    with socket.socket(family, kind, protocol) as connection:
        connection.connect(address)
        own_host = connection.getsockname()[0]
    with socket.socket(family, kind, protocol) as free:
        free.bind((own_host, 0))
        return own_host, int(free.getsockname()[1])
