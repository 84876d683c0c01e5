"""The decoder's layers, compiled."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHAPES = 64
"""Kernels of one layer that torch keeps before it gives up compiling: rows and widths come in some tens of shapes."""


def compile_layers(model: "PreTrainedModel", backend: str = "inductor") -> None:
    """Compile every decoder layer in place; all share one compiled code, which the first forwards make.

    Names of weights, hooks and checkpointing stay what they are.

    Args:
        model: A causal language model.
        backend: Of torch.compile.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        layer.compile(backend=backend)
