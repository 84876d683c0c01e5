"""Does an engine fit beside its policy? Answered from the model's shape, before vLLM starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.weights import plain_model

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
BATCHED_TOKENS = 8192
"""Tokens of one forward of the engine: prompts are read in pieces of at most this many."""
CUDA_GRAPHS = 1 * GIB
"""Of an engine that captures them."""
CONTEXT = 1 * GIB
"""Of CUDA and its libraries, for each process."""
COMMUNICATION = 1 * GIB
"""NCCL's buffers, where there are several processes."""
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on.

    Attributes:
        parameters: Weights without adapters.
        trained: Weights that have a gradient and optimizer state.
        layers: Decoder layers.
        kv_heads: Key-value heads of a layer.
        head_dim: Width of a head.
        hidden: Width of the model.
        intermediate: Width of its feed-forward layers.
        vocabulary: Tokens.
    """

    parameters: int
    trained: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int


def model_shape(model: nn.Module) -> ModelShape:
    """The shape of a language model, with or without adapters."""
    base = plain_model(model)
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    return ModelShape(
        parameters=sum(value.numel() for name, value in base.named_parameters() if ".lora_" not in name),
        trained=sum(value.numel() for value in model.parameters() if value.requires_grad),
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one device.

    Attributes:
        weights: The engine's copies of the weights: parameters x bytes x copies / tensor_parallel.
        sequence: Key-value cache of one sequence of full length: 2 x layers x kv_heads x head_dim x bytes x
            max_model_len / tensor_parallel.
        kv_cache: Key-value cache of the engine.
        activations: Of the engine's largest forward, logits included.
        policy: What the policy beside it is still to take: see `policy_bytes`.
        overhead: CUDA graphs, context and communication: see `device_overhead`.
        available: What the device has left before either is there.
    """

    weights: int
    sequence: int
    kv_cache: int
    activations: int
    policy: int
    available: int
    overhead: int = 0

    @property
    def engine(self) -> int:
        """All that is the engine's by its size."""
        return self.weights + self.kv_cache + self.activations

    def __str__(self) -> str:
        """The sum in GiB."""
        parts = {
            "engine weights": self.weights,
            "key-value cache": self.kv_cache,
            "engine activations": self.activations,
            "policy": self.policy,
            "CUDA": self.overhead,
        }
        figures = " + ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items() if value)
        return f"{figures} = {(self.engine + self.policy + self.overhead) / GIB:.2f} of {self.available / GIB:.2f} GiB"


def weight_copies(device: str) -> int:
    """How often an engine holds its weights: on CPUs as they are, for new ones, and packed, to compute with."""
    return 2 if device == "cpu" else 1


def plan_memory(
    shape: ModelShape,
    *,
    value_bytes: int,
    max_model_len: int,
    max_sequences: int,
    available: int,
    policy: int = 0,
    overhead: int = 0,
    tensor_parallel: int = 1,
    copies: int = 1,
    kv_cache: int | None = None,
    kept_free: float = 0.1,
) -> MemoryPlan:
    """Divide a device's memory.

    Args:
        shape: Of the model.
        value_bytes: 4 for float32, 2 for bfloat16.
        max_model_len: Longest prompt plus longest rationale, tokens.
        max_sequences: Decoded at one time.
        available: Bytes the device has left.
        policy: Bytes the policy will take of them, see `policy_bytes`.
        overhead: Bytes that go to CUDA, see `device_overhead`.
        tensor_parallel: Devices that share the engine.
        copies: Of the weights, see `weight_copies`.
        kv_cache: Bytes, where they are configured; else what `max_sequences` full sequences take, within the rest.
        kept_free: Share of the rest that such a cache leaves alone.

    Raises:
        ConfigError: It cannot fit: not one sequence of full length.
    """
    weights = copies * shape.parameters * value_bytes // tensor_parallel
    kv_heads = max(1, shape.kv_heads // tensor_parallel)
    sequence = 2 * shape.layers * kv_heads * shape.head_dim * value_bytes * max_model_len
    layer = 4 * shape.hidden + 3 * shape.intermediate // tensor_parallel
    # Logits, log-probs, probabilities and the noise that samples from them, float32.
    sampling = 4 * _FLOAT32 * shape.vocabulary * max_sequences
    activations = BATCHED_TOKENS * layer * value_bytes + sampling
    rest = available - policy - overhead - weights - activations
    wanted = kv_cache if kv_cache is not None else min(max_sequences * sequence, int((1 - kept_free) * rest))
    plan = MemoryPlan(weights, sequence, max(wanted, 0), activations, policy, available, overhead)
    advice = (
        "lower rollout.max_tokens, prompt.max_tokens or rollout.vllm.max_sequences, raise "
        "rollout.vllm.tensor_parallel, train adapters ('backbone.lora={rank: 16, alpha: 32}' optim=lora), or use "
        "rollout=vllm_server on other devices"
    )
    if plan.kv_cache < sequence:
        key = "" if kv_cache is None else f" (rollout.vllm.kv_cache_gib={kv_cache / GIB:g})"
        raise ConfigError(
            f"rollout=vllm does not fit: one sequence of {max_model_len} tokens takes {sequence / GIB:.3f} GiB of "
            f"key-value cache, and there is room for {plan.kv_cache / GIB:.3f}{key}: {plan}. To mend it, {advice}"
        )
    if kv_cache is not None and kv_cache > rest:
        raise ConfigError(
            f"rollout=vllm does not fit: {plan}. Lower rollout.vllm.kv_cache_gib={kv_cache / GIB:g}, or {advice}"
        )
    return plan


def policy_bytes(model: nn.Module, device: str, *, trains: bool, shards: int = 1) -> int:
    """What a policy is still to take of the device: weights that are not there yet, gradients and optimizer moments.

    Gradients of several processes live in the buckets that are exchanged, so that they are there once.

    Args:
        model: With or without adapters; training adds gradients and two moments in float32 to what requires them.
        device: `cpu` or `cuda`.
        trains: Whether it is trained; an evaluation holds the weights alone.
        shards: Processes that share out weights, gradients and moments; each holds its part, rounded up.
    """
    weights = sum(value.numel() * value.element_size() for value in model.parameters() if value.device.type != device)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return -(-(weights + (3 * _FLOAT32 * trained if trains else 0)) // shards)


def device_overhead(device: str, *, processes: int, eager: bool) -> int:
    """What a GPU gives to CUDA beside the model: figures from experience, rounded up, as vLLM measures its own late."""
    if device == "cpu":
        return 0
    return CONTEXT + (COMMUNICATION if processes > 1 else 0) + (0 if eager else CUDA_GRAPHS)


def available_bytes(device: "torch.device") -> int:
    """What a device has left."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - one line of a kernel file
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kib) * 1024
