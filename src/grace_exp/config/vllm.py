"""Settings of the vLLM engines."""

import json
import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


def _as_text(devices: object) -> str | None:
    """Return the devices as CUDA_VISIBLE_DEVICES writes them."""
    if devices is None:
        return None
    several = devices if isinstance(devices, list) else [devices]
    text = ",".join(map(str, several))
    if any(
        isinstance(device, bool) or not isinstance(device, int | str) for device in several
    ) or not _DEVICES.fullmatch(text):
        raise ValueError(
            f"devices={json.dumps(devices)}: give the number of a GPU, a list of numbers, or text as in "
            "CUDA_VISIBLE_DEVICES"
        )
    return text


_DEVICES = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]*(,[0-9A-Za-z][0-9A-Za-z-]*)*")
Seconds = Annotated[float, Field(gt=0)]
MAX_LORA_RANK = 512


@dataclass(config=STRICT, frozen=True, kw_only=True)
class VllmServerConfig:
    """The server of `rollout=vllm_server`."""

    url: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    """URL of a running server, e.g. http://10.0.0.2:8000; null: the run starts a server on this machine and ends it."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address on which the run's own server listens. It has endpoints that change weights, and no password: keep it on
    loopback unless the network is trusted."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the run's own server; null: any free port (with several processes it must be set)."""
    devices: Annotated[str | None, BeforeValidator(_as_text)] = None
    """GPUs of the run's own server, one for each of `tensor_parallel`: a number, a list of numbers, or text (numbers or
    UUIDs separated by commas). Numbers count the GPUs that the run sees; the trainer uses the first ones."""
    exchange_dir: Annotated[str, Field(min_length=1)] | None = None
    """Folder that trainer and server both see, for adapters and for weights that are sent as files (CPU); null: a
    temporary folder, which works if both are on one machine."""

    @property
    def device_list(self) -> tuple[str, ...]:
        """`devices` as a tuple."""
        return tuple(self.devices.split(",")) if self.devices is not None else ()

    @property
    def device_numbers(self) -> tuple[int, ...]:
        """The devices that are numbers."""
        return tuple(int(device) for device in self.device_list if device.isdecimal())

    @model_validator(mode="after")
    def _port_is_of_the_runs_own_server(self) -> Self:
        if self.url is not None and self.port is not None:
            raise ValueError(
                f"url={self.url!r} with port={self.port}: the port belongs to a server that the run starts"
            )
        return self


@dataclass(config=STRICT, frozen=True, kw_only=True)
class VllmConfig:
    """Settings of `rollout=vllm` and `rollout=vllm_server`; the transformers engine reads none of them."""

    lora: Literal["merged", "adapter"] = "merged"
    """What a sync sends of a LoRA policy. merged: all weights with the adapters merged in, which decodes fastest;
    adapter:
    only the adapters, as a peft folder, which is small."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engine's weights and cache; auto: bfloat16 with hardware.precision=bf16-mixed, float32
    otherwise."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Number of devices that share one engine. 1: every process has its own engine (or the server one device)."""
    max_sequences: Annotated[int, Field(ge=1)] = 256
    """Rationales decoded at one time; further ones wait."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Key-value cache per device in GiB; null: enough for `max_sequences` full sequences, within the free memory."""
    eager: bool | None = None
    """Use no CUDA graphs and no compilation: the engine starts sooner, and decodes more slowly on GPUs. null: on CPUs
    only."""
    sleep: bool = True
    """Free the engine's memory while the policy trains (CUDA, in process)."""
    probe: bool = False
    """After every sync, write a few tokens and compare their log-probs with the policy's."""
    start_timeout: Seconds = 900.0
    """Time limit for the start of an engine or server, in seconds."""
    sync_timeout: Seconds = 300.0
    """Time limit for sending new weights, in seconds."""
    generate_timeout: Seconds = 3600.0
    """Time limit for one call for rationales, in seconds."""
    server: VllmServerConfig = Field(default_factory=VllmServerConfig)
