"""Where a language model returns its hidden states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def module_of_layer(model: "PreTrainedModel", layer: int) -> nn.Module:
    """Return the module whose output is `hidden_states[layer]` (transformers' numbering: 0 the input, -1 the last).

    For the last layer this is the decoder itself, which contains the final norm.
    """
    decoder: Any = model.get_decoder()
    count = len(decoder.layers)
    index = layer % (count + 1)
    module: nn.Module = decoder if index == count else decoder.embed_tokens if index == 0 else decoder.layers[index - 1]
    return module


def states_in(output: Any) -> Tensor:
    """Return the hidden states [rows, tokens, hidden] from the output of such a module."""
    if isinstance(output, Tensor):
        return output
    states_BLH: Tensor = output[0]  # transformers' outputs begin with `last_hidden_state`, too
    return states_BLH


@contextmanager
def recorded_layer(model: "PreTrainedModel", layer: int) -> Iterator[list[Tensor]]:
    """Collect `hidden_states[layer]` (transformers' numbering) of the next forwards; nothing for the last layer."""
    module = module_of_layer(model, layer)
    recorded: list[Tensor] = []
    if module is model.get_decoder():
        yield recorded
        return

    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        recorded.append(states_in(output))

    handle = module.register_forward_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()
