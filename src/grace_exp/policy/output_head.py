"""An output head whose logits are float32 in every precision.

Under bf16 autocast, or with bf16 weights, a linear layer rounds its result to bf16. Logits between 16 and 32 then have
steps of 0.125, which changes a token's log-prob by 0.02 nats on average. Here the operands are rounded as autocast
rounds them. Their product, which the hardware sums in float32 anyway, is not rounded.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grace_exp.policy.onednn_linear import Library, linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOW = (torch.bfloat16, torch.float16)


class Float32Head(nn.Linear):
    """A linear layer that returns float32 [..., vocabulary] for hidden states in any precision (float64 in float64)."""

    product = staticmethod(functional.linear)
    """The product of float32 operands; the same interface as `torch.nn.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of hidden states [..., hidden]."""
        dtype = compute_dtype(input.device.type, self.weight.dtype)
        if dtype not in _LOW:
            return self.product(input, self.weight, self.bias)
        logits_PV: Any = _Product.apply(input.flatten(0, -2), self.weight, dtype)  # type: ignore[no-untyped-call]
        logits: Tensor = logits_PV.unflatten(0, input.shape[:-1])
        return logits if self.bias is None else logits + self.bias.float()


class OneDnnHead(Float32Head):
    """The same head with oneDNN's products of float32 operands (see `policy.onednn_linear`)."""

    product = staticmethod(linear)


def compute_dtype(device: str, weights: torch.dtype) -> torch.dtype:
    """Return the present precision of a matrix product's operands: that of autocast, or of the weights."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights


def use_float32_head(model: "PreTrainedModel", library: Library = "torch") -> None:
    """Give a language model such a head, in place; the weight, its name and its hooks do not change.

    A head that is not a plain linear layer is not changed. If the head has adapters, the layer below them is changed.

    Args:
        model: The language model.
        library: Library of its float32 products.
    """
    head: Any = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    if type(head) in (nn.Linear, Float32Head, OneDnnHead):
        head.__class__ = OneDnnHead if library == "onednn" else Float32Head


class _Product(torch.autograd.Function):
    """Product of hidden_PH [tokens, hidden] and weight_VH [vocabulary, hidden]: low-precision operands, float32 result.

    Gradients are products of low-precision operands too. The weight's gradient has the weight's precision, so that
    micro-batches and chunks add up in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, dtype: torch.dtype) -> Tensor:
        low_PH = hidden_PH.to(dtype)
        ctx.save_for_backward(low_PH, weight_VH)  # the copy is as large as a chunk's states: it is made again
        ctx.hidden_dtype = hidden_PH.dtype
        return _product(low_PH, weight_VH.to(dtype).t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        low_PH, weight_VH = ctx.saved_tensors
        gradient_PV = gradients[0].to(low_PH.dtype)
        of_hidden_PH = of_weight_VH = None
        if ctx.needs_input_grad[0]:
            of_hidden_PH = _product(gradient_PV, weight_VH.to(low_PH.dtype)).to(ctx.hidden_dtype)
        if ctx.needs_input_grad[1]:
            of_weight_VH = _product(gradient_PV.t(), low_PH).to(weight_VH.dtype)
        return of_hidden_PH, of_weight_VH, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product of two low-precision matrices in float32."""
    with torch.autocast(left.device.type, enabled=False):
        if left.device.type == "cuda":
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.float() @ right.float()  # exact products summed in float32, as the CUDA kernel computes them
