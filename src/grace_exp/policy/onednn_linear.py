"""Matrix products of linear layers by oneDNN, on CPUs where it is the faster library.

PyTorch multiplies float32 matrices by Intel's MKL. On CPUs of other vendors MKL runs code for AVX2: 100 GFLOP/s on one
AMD EPYC core. oneDNN, which PyTorch ships for compiled models, uses AVX-512 there and runs 240. Both compute in float32
but add in another order, so results differ in their last bits.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Library = Literal["torch", "onednn"]
_LEAST_WORK = 2**19
"""Least number of multiplications for which oneDNN's preparation pays."""


def resolved_library(choice: Literal["auto", "torch", "onednn"]) -> Library:
    """Return what `hardware.linear` means on this machine.

    auto chooses oneDNN on CPUs that have AVX-512 and are not made by Intel. The rule reads the CPU's name and measures
    nothing, so that a run can be repeated to the last bit.
    """
    if choice != "auto":
        return choice
    faster = torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() not in (None, "GenuineIntel")
    return "onednn" if faster and _is_there() else "torch"


def use_library(model: "PreTrainedModel", library: Library) -> None:
    """Let every plain linear layer use this library, in place; weights, names, hooks and adapters do not change."""
    for module in model.modules():
        if type(module) in (nn.Linear, OneDnnLinear):
            module.__class__ = OneDnnLinear if library == "onednn" else nn.Linear


class OneDnnLinear(nn.Linear):
    """A linear layer that computes float32 products on CPUs by oneDNN, and other or small ones by PyTorch."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] for [..., in]."""
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the same as `torch.nn.functional.linear`."""
    if not _takes(input, weight):
        return functional.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        found: Any = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    else:
        found = _product(rows, weight, bias)
    result: Tensor = found.view(*input.shape[:-1], weight.shape[0])
    return result


def _takes(input: Tensor, weight: Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.numel() * weight.shape[0] >= _LEAST_WORK
        and not torch.is_autocast_enabled("cpu")
        and type(weight) in (Tensor, nn.Parameter)  # a distributed tensor has its own products
        and _is_there()  # a model may be unpickled on a machine without it
    )


class _Product(torch.autograd.Function):
    """Product of input [rows, in] and weight [out, in]."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The backward pass of a frozen weight needs no input; that of an input without gradient needs no weight.
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _product(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (input, weight), gradient = ctx.saved_tensors, gradients[0].contiguous()
        of_input = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = _product(gradient.t(), input.t()) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left [rows, in] x right [out, in], transposed."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


@functools.cache
def _is_there() -> bool:
    """Whether this build of PyTorch has the operator, and it computes the expected product."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    left, right = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)
    try:
        return torch.equal(_product(left, right.t()), left @ right)
    except RuntimeError:
        return False


@functools.cache
def _vendor() -> str | None:
    """Return the CPU's vendor as Linux names it; None if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), None)
