"""Bytes that a forward stores for its backward, and that both take while they run.

They are counted from what autograd saves in transformers' Qwen2, Qwen3 and Llama. The residual stream and the norms are
float32 in every precision. Under bf16 autocast every matrix product stores bf16 copies of its operands.
"""

from dataclasses import dataclass
from typing import Literal

from grace_exp.training.plan.dimensions import Dimensions

Attention = Literal["causal", "mask", "flex"]
"""causal: plain rows; mask: packed rows with a dense mask; flex: packed rows with a block mask."""
Checkpointing = Literal["off", "full"]
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Forward:
    """The sizes of a micro-batch.

    Attributes:
        tokens: Rows x width.
        width: Width of a row.
        value: Bytes of a matrix product's operands: 2 under bf16 autocast, else 4.
        attention: Attention of rows.
        checkpointing: What the backward computes again.
    """

    tokens: int
    width: int
    value: int
    attention: Attention = "causal"
    checkpointing: Checkpointing = "off"


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of a forward and a backward without the output head.

    Attributes:
        stored: Bytes stored by the forward for the backward.
        working: Further bytes in the layer whose backward runs.
    """

    stored: float
    working: float

    @property
    def peak(self) -> float:
        """The sum of both."""
        return self.stored + self.working


def training_activations(dimensions: Dimensions, forward: Forward) -> Activations:
    """Return the bytes of a forward with gradients and its backward."""
    shape, tokens = dimensions.shape, forward.tokens
    layer = tokens * layer_token_bytes(dimensions, forward) + weight_copies(dimensions, forward.value)
    # The embeddings, and the last norm with its output; a frozen norm stores less.
    outside = (3 if dimensions.lora is None else 2) * FLOAT32 * shape.hidden * tokens
    # The gradient of the feed-forward's product, and that of its largest matrix before it is added to the others' (full
    # training), or the float32 copy of it that adapters read.
    working = float(forward.value * shape.intermediate * tokens)
    if dimensions.lora is None:
        working += shape.hidden * shape.intermediate * (forward.value + FLOAT32)
    else:
        working += FLOAT32 * shape.intermediate * tokens
    if forward.checkpointing == "off":
        return Activations(shape.layers * layer + outside, working)
    kept = float(FLOAT32 * shape.hidden * tokens)
    return Activations(shape.layers * kept + outside, layer + working)


def layer_token_bytes(dimensions: Dimensions, forward: Forward) -> float:
    """Return the bytes that one layer stores for one token."""
    shape, value, lora = dimensions.shape, forward.value, dimensions.lora is not None
    hidden, query, key = shape.hidden, dimensions.query_width, dimensions.key_width
    inputs = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    attention: float
    readers = len(inputs) if not lora else len(inputs.intersection(dimensions.adapted))
    norm = FLOAT32 * hidden * (1 if lora else 2) + 8
    # In float32 the products that read a norm's output share it.
    read = value * hidden * (readers if value != FLOAT32 else min(readers, 2))
    heads_norm = 0.0
    if shape.qk_norm:
        heads_norm = (FLOAT32 + value * (not lora)) * (query + key) + 8 * (shape.heads + shape.kv_heads)
    keys = 2 * query if forward.attention == "mask" or _repeats_keys(dimensions, forward) else 2 * key
    attention = value * (2 * query + keys) + FLOAT32 * shape.heads
    if forward.attention == "mask":
        attention += value * forward.width
    feed_forward = 4 * value * shape.intermediate
    if lora:
        attention += value * query * (value != FLOAT32 and "o_proj" in dimensions.adapted)
        feed_forward -= value * shape.intermediate * ("down_proj" not in dimensions.adapted)
    adapters = value * dimensions.lora.rank * len(dimensions.adapted) if dimensions.lora is not None else 0
    return 2 * norm + read + heads_norm + attention + feed_forward + adapters


def weight_copies(dimensions: Dimensions, value: int) -> int:
    """Return the number of weights of a layer that have low-precision copies, which its backward reads."""
    return value * dimensions.layer_matrices if value != FLOAT32 else 0


def head_bytes(dimensions: Dimensions, chunk: int, value: int, *, gradients: bool = True) -> float:
    """Return the bytes of the output head for `chunk` positions: logits, tempered logits, and in backward gradients."""
    logits = FLOAT32 * chunk * dimensions.shape.vocabulary
    copy = value * dimensions.embedding if value != FLOAT32 else 0
    if not gradients:
        return 2 * logits + copy
    if dimensions.lora is not None and value == FLOAT32:
        return logits  # a frozen head: the forward computes its gradient, and logits change in place
    weight_gradient = FLOAT32 * dimensions.embedding if dimensions.lora is None else 0
    return 4 * logits + copy + weight_gradient


def scoring_bytes(dimensions: Dimensions, forward: Forward) -> float:
    """Return the bytes of the largest layer's forward without gradients: residual stream, norms, feed-forward."""
    shape = dimensions.shape
    token = 3 * FLOAT32 * shape.hidden + forward.value * (shape.hidden + 3 * shape.intermediate)
    copy = forward.value * shape.hidden * shape.intermediate if forward.value != FLOAT32 else 0
    return token * forward.tokens + copy


def _repeats_keys(dimensions: Dimensions, forward: Forward) -> bool:
    """Whether keys are repeated: FlexAttention shares keys only among a power of two of heads."""
    ratio = dimensions.shape.heads // dimensions.shape.kv_heads
    return forward.attention == "flex" and ratio & (ratio - 1) != 0
