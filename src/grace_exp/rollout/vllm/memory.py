"""Check from the model's shape, before vLLM starts, that an engine fits beside its policy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.weights import plain_model

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
BATCHED_TOKENS = 8192
"""Tokens of one forward of the engine; longer prompts are read in several pieces."""
CUDA_GRAPHS = 1 * GIB
"""Memory of CUDA graphs, for an engine that captures them."""
CONTEXT = 1 * GIB
"""Memory of CUDA and its libraries, per process."""
COMMUNICATION = 1 * GIB
"""NCCL's buffers, if there are several processes."""
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model on which its memory depends.

    Attributes:
        parameters: Weights without adapters.
        trained: Weights that have a gradient and optimizer state.
        layers: Decoder layers.
        kv_heads: Key-value heads of a layer.
        head_dim: Width of a head.
        hidden: Width of the hidden states.
        intermediate: Width of the feed-forward layers.
        vocabulary: Number of tokens.
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
    """Return the shape of a language model, with or without adapters."""
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
        activations: Activations of the engine's largest forward, logits included.
        policy: What the policy beside it will still take: see `policy_bytes`.
        overhead: CUDA graphs, context and communication: see `device_overhead`.
        available: Free memory of the device before either is there.
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
        """The engine's bytes: weights, cache and activations."""
        return self.weights + self.kv_cache + self.activations

    def __str__(self) -> str:
        """Return the sum in GiB, with its parts."""
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
    """Return how many copies of the weights an engine holds: on CPUs one that takes new values, and a packed one."""
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
        shape: The model's shape.
        value_bytes: 4 for float32, 2 for bfloat16.
        max_model_len: Longest prompt plus longest rationale, tokens.
        max_sequences: Sequences decoded at one time.
        available: Free bytes of the device.
        policy: Bytes that the policy will take of them, see `policy_bytes`.
        overhead: Bytes that CUDA takes, see `device_overhead`.
        tensor_parallel: Number of devices that share the engine.
        copies: Number of copies of the weights, see `weight_copies`.
        kv_cache: Bytes of the cache, if configured; None: enough for `max_sequences` full sequences, within the rest.
        kept_free: Share of the rest that such a cache does not take.

    Raises:
        ConfigError: The device has no room for one sequence of full length.
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
    """Return the bytes that a policy will still take: weights not on the device yet, gradients, optimizer moments.

    With several processes gradients are stored once, in the buckets that are exchanged.

    Args:
        model: With or without adapters; training adds gradients and two moments in float32 to what requires them.
        device: `cpu` or `cuda`.
        trains: Whether it is trained; an evaluation holds only the weights.
        shards: Number of processes that share weights, gradients and moments; each holds its part, rounded up.
    """
    weights = sum(value.numel() * value.element_size() for value in model.parameters() if value.device.type != device)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return -(-(weights + (3 * _FLOAT32 * trained if trains else 0)) // shards)


def device_overhead(device: str, *, processes: int, eager: bool) -> int:
    """Return what CUDA takes of a GPU beside the model: experience, rounded up, as vLLM measures its own only later."""
    if device == "cpu":
        return 0
    return CONTEXT + (COMMUNICATION if processes > 1 else 0) + (0 if eager else CUDA_GRAPHS)


def available_bytes(device: "torch.device") -> int:
    """Return the free memory of a device, in bytes."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - one line of a kernel file
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kib) * 1024
