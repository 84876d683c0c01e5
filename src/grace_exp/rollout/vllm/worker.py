"""Code that runs inside vLLM's workers: a weight-transfer back end for weights on the same machine.

vLLM's own back ends need CUDA and two processes (a CUDA IPC handle cannot be opened in the process that made it). This
one takes weights from the same process, or from a file that trainer and server both see, on any device. It implements
vLLM's weight-transfer interface: https://docs.vllm.ai/en/latest/training/weight_transfer/
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.platforms import current_platform

from grace_exp.rollout.vllm.weights import load_into

BACKEND = "grace_exp"


@dataclass
class NearbyInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The back end needs no information at the start."""


@dataclass
class NearbyUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the new weights are: exactly one of the two.

    Attributes:
        weights: Names and values, in process.
        path: A safetensors file.
    """

    weights: Iterable[tuple[str, Tensor]] | None = None
    path: str | None = None


class NearbyWeights(WeightTransferEngine[NearbyInitInfo, NearbyUpdateInfo]):  # type: ignore[misc]
    """Loads weights in checkpoint format into the running model."""

    init_info_cls = NearbyInitInfo
    update_info_cls = NearbyUpdateInfo

    def init_transfer_engine(self, init_info: NearbyInitInfo) -> None:
        """Do nothing: there is no connection to make."""

    def start_weight_update(self) -> None:
        """Let kernels that keep weights in their own layout take the new weights layer by layer."""
        self._names = {name for name, _ in self.model.named_parameters()}  # while tied modules still share theirs
        if self._by_layer:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: NearbyUpdateInfo) -> None:
        """Load all weights."""
        load_into(self.model, _weights(update_info), self._names)

    def finish_weight_update(self) -> None:
        """End the update that `start_weight_update` began."""
        if self._by_layer:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            from grace_exp.rollout.vllm.cpu import pack

            pack(self.model)

    @property
    def _by_layer(self) -> bool:
        """Whether weights are reloaded layer by layer. CPU kernels use the copies of `pack` and need no reload."""
        return bool(self.device.type != "cpu")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive the weights, and wait for the device if there is one."""
        if self.device.type == "cpu":
            self.receive_weights(self.parse_update_info(update_info))
        else:
            super().update_weights(update_info)

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


class WorkerExtension:
    """vLLM gets its name as `worker_extension_cls`, so that its workers import this module."""


def prepare() -> None:
    """Register the back end with vLLM in this process, before the engine is made."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, NearbyWeights)
    if current_platform.is_cpu():
        from grace_exp.rollout.vllm import cpu

        cpu.prepare()


def _weights(update_info: NearbyUpdateInfo) -> Iterator[tuple[str, Tensor]]:
    if update_info.weights is not None:
        yield from update_info.weights
        return
    from safetensors import safe_open

    assert update_info.path is not None
    with safe_open(update_info.path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)


prepare()
