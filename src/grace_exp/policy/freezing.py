"""Which weights an embedding depends on."""

from typing import Any

from grace_exp.policy.policy import Policy


def freeze_beyond_pooling(policy: Policy) -> None:
    """Freeze the weights that no embedding depends on: layers above `pooling.layer`, and an untied output head.

    They would get no gradient, and the exchange of gradients between processes would wait for it.
    """
    decoder: Any = policy.causal_lm.get_decoder()
    index = policy.pooling.layer % (len(decoder.layers) + 1)
    if index < len(decoder.layers):
        for module in (*decoder.layers[index:], decoder.norm):
            module.requires_grad_(False)
    head = policy.causal_lm.get_output_embeddings()
    if head.weight is not policy.causal_lm.get_input_embeddings().weight:
        head.requires_grad_(False)
