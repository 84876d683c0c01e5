"""What `hardware=auto` finds on this machine; `conf/` names it `${machine:base}` and so on."""

import functools
from dataclasses import dataclass
from typing import Literal

from omegaconf import OmegaConf

from grace_exp.config.vllm_package import vllm_problem

BF16_CAPABILITY = (8, 0)
"""The lowest CUDA compute capability of GPUs that compute in bfloat16."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The choices for a machine.

    Attributes:
        base: Choice of `hardware/base`.
        rollout: Choice of `rollout=`.
        precision: Of `hardware.precision`.
        description: One line for the terminal: what was found and chosen.
    """

    base: Literal["cpu", "gpu"]
    rollout: Literal["transformers", "vllm"]
    precision: Literal["32-true", "bf16-mixed"]
    description: str


@functools.cache
def this_machine() -> Machine:
    """Return the choices for the first GPU, or for the CPU and the reason why it is used."""
    import torch

    if not torch.cuda.is_available():
        return Machine("cpu", "transformers", "32-true", f"hardware=auto: the CPU ({why_no_gpu()})")
    precision: Literal["32-true", "bf16-mixed"]
    precision = "bf16-mixed" if torch.cuda.get_device_capability() >= BF16_CAPABILITY else "32-true"
    found = f"hardware=auto: {torch.cuda.get_device_name()}, {precision}"
    if problem := vllm_problem("gpu"):
        return Machine("gpu", "transformers", precision, f"{found}, rationales by transformers ({problem})")
    return Machine("gpu", "vllm", precision, f"{found}, rationales by vLLM")


def why_no_gpu() -> str:
    """Say in words why PyTorch sees no GPU."""
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    driver = ", which wants an NVIDIA driver of 580 or newer" if torch.version.cuda.startswith("13.") else ""
    return f"PyTorch finds no CUDA device; it is built for CUDA {torch.version.cuda}{driver}"


def register_machine() -> None:
    """Register `${machine:...}` with OmegaConf."""
    OmegaConf.register_new_resolver("machine", lambda what: getattr(this_machine(), what), replace=True)
