"""Where a language model's hidden states come out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def module_of_layer(model: "PreTrainedModel", layer: int) -> nn.Module:
    """The module whose output is `hidden_states[layer]` (transformers' numbering: 0 the input, -1 the last).

    Of the last layer that is the decoder itself, whose final norm belongs to it.
    """
    decoder: Any = model.get_decoder()
    count = len(decoder.layers)
    index = layer % (count + 1)
    module: nn.Module = decoder if index == count else decoder.embed_tokens if index == 0 else decoder.layers[index - 1]
    return module


def states_in(output: Any) -> Tensor:
    """The hidden states [rows, tokens, hidden] in what such a module returns."""
    if isinstance(output, Tensor):
        return output
    states: Tensor = output[0]  # also of transformers' outputs, which begin with `last_hidden_state`
    return states


@contextmanager
def recorded_layer(model: "PreTrainedModel", layer: int) -> Iterator[list[Tensor]]:
    """Collects `hidden_states[layer]` (transformers' numbering) of the next forwards, unless it is the last."""
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
