"""Compile the layers of the decoder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHAPES = 64
"""Most kernels of one layer before torch stops compiling; rows and widths come in some tens of shapes."""


def compile_layers(model: "PreTrainedModel", backend: str = "inductor") -> None:
    """Compile every decoder layer in place; all layers share one compiled code, which the first forwards build.

    Names of weights, hooks and checkpointing do not change.

    Args:
        model: A causal language model.
        backend: Back end of torch.compile.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        layer.compile(backend=backend)
