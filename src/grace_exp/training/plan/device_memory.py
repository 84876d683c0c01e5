"""Memory of every part of a run on one device, in each phase of a step."""

from dataclasses import dataclass, replace

from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.memory import COMMUNICATION, CONTEXT, CUDA_GRAPHS, GIB, plan_memory, weight_copies
from grace_exp.training.plan.activations import (
    FLOAT32,
    Forward,
    head_bytes,
    scoring_bytes,
    training_activations,
)
from grace_exp.training.plan.plan_settings import PlanSettings

KEPT_FREE = 0.05
"""Share of a device that a plan leaves free: the allocator cuts memory into blocks, and some stay unused."""
ENGINE_KEEPS_FREE = 0.5
"""Share of the memory beside policy and engine that the engine's cache does not take (`rollout.vllm.build`)."""
_MERGED_ROWS = 3  # float32 rows of the transformers engine: logits, sorted or tempered logits, probabilities


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of each part on one device.

    Attributes:
        phases: The bytes of each part, by phase (rollout, score, update).
        memory: Bytes of the device.
        cached_sequences: Full sequences that the engine's cache holds; None: no vLLM engine on this device.
        train_tokens: Token budget of a micro-batch with gradients.
        score_tokens: Token budget of a micro-batch without gradients.
        problem: Why the engine does not fit; None: it fits.
        keeps_forward: Whether a step's forwards are kept for its update.
    """

    phases: dict[str, dict[str, int]]
    memory: int
    cached_sequences: int | None
    train_tokens: int
    score_tokens: int
    problem: str | None = None
    keeps_forward: bool = False

    def total(self, phase: str) -> int:
        """Return the bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def largest(self) -> int:
        """The bytes of the largest phase."""
        return max(map(self.total, self.phases))

    @property
    def usable(self) -> int:
        """The bytes that a plan may use."""
        return int((1 - KEPT_FREE) * self.memory)

    @property
    def fits(self) -> bool:
        """Whether every phase fits."""
        return self.problem is None and self.largest <= self.usable


def device_memory(settings: PlanSettings) -> DeviceMemory:
    """Divide a device's memory among the parts of a run; token budgets of `auto` get what remains."""
    held = _held(settings)
    engine, sequences, problem = _engine_parts(settings, sum(held.values()))
    # An engine in process frees its memory while the policy computes, if it may sleep; a server is on another device.
    stays = engine if settings.engine == "vllm" and not (settings.gpu and settings.vllm.sleep) else {}
    keeps = settings.keep_forward
    if keeps is None:
        keeps = _has_room_for_forwards(settings, sum(held.values()) + sum(stays.values()))
    if not keeps:
        settings = replace(settings, kept_tokens=0)
    stays |= _kept_parts(settings)
    room = int((1 - KEPT_FREE) * settings.memory) - sum(held.values()) - sum(stays.values())
    train, score = _budget(settings, room, gradients=True), _budget(settings, room, gradients=False)
    phases = {
        "rollout": held | engine,
        "score": held | stays | _score_parts(settings, settings.forward(score)),
        "update": held | stays | _update_parts(settings, settings.forward(train)),
    }
    if settings.engine is None:
        del phases["rollout"]
    return DeviceMemory(phases, settings.memory, sequences, train, score, problem, keeps)


def _held(settings: PlanSettings) -> dict[str, int]:
    """Return the parts that exist in every phase."""
    dimensions, shards = settings.dimensions, settings.shards
    adapters = dimensions.adapters
    parts = {
        "weights": FLOAT32 * (dimensions.parameters + adapters) // shards,
        # One process frees its gradients between updates, but no other phase needs their memory.
        "gradients": FLOAT32 * dimensions.trained // shards,
        "moments": 2 * FLOAT32 * dimensions.trained // shards,
        "further copies": FLOAT32 * settings.copies // shards,
    }
    if settings.shards > 1:
        # Two layers (the next is gathered while one computes), and all weights outside of layers, with their gradients.
        outside = dimensions.parameters - dimensions.shape.layers * dimensions.layer
        gradients = 2 if dimensions.lora is None else 1
        parts["gathered weights"] = gradients * FLOAT32 * (2 * dimensions.layer + outside)
    if settings.gpu:
        parts["context"] = CONTEXT + (COMMUNICATION if settings.processes > 1 else 0)
    return {name: size for name, size in parts.items() if size}


def _engine_parts(settings: PlanSettings, held: int) -> tuple[dict[str, int], int | None, str | None]:
    """Return the engine's parts, the full sequences that its cache holds, and why it does not fit."""
    if settings.engine == "transformers":
        return _transformers_parts(settings), None, None
    if settings.engine != "vllm":
        return {}, None, None
    vllm = settings.vllm
    graphs = CUDA_GRAPHS if settings.gpu and not vllm.eager else 0
    try:
        plan = plan_memory(
            settings.dimensions.engine_shape(),
            value_bytes=settings.engine_value,
            max_model_len=settings.longest,
            max_sequences=vllm.max_sequences,
            available=settings.memory - graphs,
            policy=held,
            tensor_parallel=vllm.tensor_parallel,
            copies=weight_copies("cuda" if settings.gpu else "cpu"),
            kv_cache=None if vllm.kv_cache_gib is None else int(vllm.kv_cache_gib * GIB),
            kept_free=ENGINE_KEEPS_FREE,
        )
    except ConfigError as error:
        weights = settings.dimensions.parameters * settings.engine_value // vllm.tensor_parallel
        return {"engine weights": weights, "CUDA graphs": graphs}, 0, str(error)
    parts = {
        "engine weights": plan.weights,
        "engine cache": plan.kv_cache,
        "engine activations": plan.activations,
        "CUDA graphs": graphs,
    }
    return {name: size for name, size in parts.items() if size}, plan.kv_cache // plan.sequence, None


def _transformers_parts(settings: PlanSettings) -> dict[str, int]:
    """Return the parts of the engine that writes with the policy's own weights."""
    dimensions = settings.dimensions
    # Rotated keys are float32 under autocast; values are not.
    cached = settings.batch_tokens * dimensions.shape.layers * dimensions.key_width * (FLOAT32 + settings.value)
    rows = max(1, settings.batch_tokens // settings.longest)
    parts = {
        "engine weights": FLOAT32 * dimensions.parameters if dimensions.lora is not None else 0,  # adapters merged in
        "engine cache": cached,
        "engine activations": _MERGED_ROWS * FLOAT32 * rows * dimensions.shape.vocabulary,
    }
    return {name: size for name, size in parts.items() if size}


def _update_parts(settings: PlanSettings, forward: Forward) -> dict[str, int]:
    activations = training_activations(settings.dimensions, forward)
    parts = {"activations": int(activations.stored), "one layer's backward": int(activations.working)}
    if settings.kept_tokens:
        del parts["activations"]  # the kept forwards include them
    if settings.longest_rationale:
        parts["output head"] = int(head_bytes(settings.dimensions, settings.chunk, settings.value))
    return parts


def _has_room_for_forwards(settings: PlanSettings, taken: int) -> bool:
    """Whether a step's forwards could be kept if all its texts and rationales had the greatest length."""
    if not settings.longest_kept_tokens:
        return False
    forward = replace(settings.forward(settings.longest_kept_tokens), tokens=settings.longest_kept_tokens)
    kept = int(training_activations(settings.dimensions, forward).stored)
    update = _update_parts(settings, settings.forward(settings.train_tokens or settings.longest_row))
    return taken + kept + sum(update.values()) <= int((1 - KEPT_FREE) * settings.memory)


def _kept_parts(settings: PlanSettings) -> dict[str, int]:
    """Return parts kept from scoring to update, at the mean lengths of `job.plan`, and the second gradient if any."""
    parts = {"kept forwards": 0, "policy gradient apart": 0}
    if settings.kept_tokens:
        kept = replace(settings.forward(settings.kept_tokens), tokens=settings.kept_tokens)
        parts["kept forwards"] = int(training_activations(settings.dimensions, kept).stored)
    if settings.gradient_apart:
        parts["policy gradient apart"] = FLOAT32 * settings.dimensions.trained
    return {name: size for name, size in parts.items() if size}


def _score_parts(settings: PlanSettings, forward: Forward) -> dict[str, int]:
    parts = {"activations": int(scoring_bytes(settings.dimensions, forward))}
    if settings.longest_rationale:
        parts["output head"] = int(head_bytes(settings.dimensions, settings.chunk, settings.value, gradients=False))
    return parts


def _budget(settings: PlanSettings, room: int, *, gradients: bool) -> int:
    """Return the configured budget, or the largest multiple of 1024 that takes at most `room` bytes."""
    configured = settings.train_tokens if gradients else settings.score_tokens
    if configured is not None:
        return configured
    parts = _update_parts if gradients else _score_parts
    most = settings.most_train_tokens if gradients else settings.most_score_tokens
    for tokens in range(most // 1024 * 1024, settings.longest_row, -1024):
        if sum(parts(settings, settings.forward(tokens)).values()) <= room:
            return tokens
    return settings.longest_row
