"""Where a language model's hidden states come out."""

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
