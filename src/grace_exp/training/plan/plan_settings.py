"""The settings that a plan depends on, as plain numbers from which variants of the run can be made."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from grace_exp.config.engine_use import sequences_at_once
from grace_exp.config.kept_forward import kept_forward_problems
from grace_exp.config.root import GraceConfig
from grace_exp.config.vllm import VllmConfig
from grace_exp.objective.registry import needs_reference
from grace_exp.training.plan.activations import FLOAT32, Attention, Checkpointing, Forward
from grace_exp.training.plan.dimensions import Dimensions
from grace_exp.training.plan.step_work import step_texts

Strategy = Literal["auto", "ddp", "fsdp2"]
_MOST_TRAIN, _MOST_SCORE = 16384, 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """The settings of a run on which memory and time depend.

    Attributes:
        dimensions: Dimensions of the model and its adapters.
        gpu: Whether devices are GPUs; on a CPU engine and policy share the machine's memory.
        memory: Bytes of one device.
        processes: Number of processes of the run.
        strategy: ddp: every process holds the model; fsdp2: each holds a share of it.
        value: Bytes of a matrix product's operands in training: 2 under bf16 autocast, else 4.
        checkpointing: What the backward computes again.
        attention: Attention of rows.
        longest_prompt: Longest prompt, tokens.
        longest_rationale: Longest rationale, tokens; 0 for methods that train on prompts only.
        longest_packed: Longest packed row, tokens; 0: rows are not packed.
        train_tokens: Token budget of a micro-batch with gradients; None: as much as fits.
        score_tokens: Token budget of a micro-batch without gradients; None: as much as fits.
        chunk: Positions whose logits exist at one time.
        engine: The engine that writes rationales; None: no rationale is written.
        engine_value: Bytes of a value in the engine's weights and cache.
        vllm: The engine's settings.
        batch_tokens: Token budget of the transformers engine.
        copies: Weights of further copies of the model: a reference, a moving average.
        kept_tokens: Tokens of a process's scoring forwards that may be kept for its update; 0: they cannot be kept.
        longest_kept_tokens: The same if all texts and rationales have the greatest length.
        keep_forward: Whether they are kept; None: if memory has room.
        gradient_apart: Whether some updates hold the policy gradient beside the whole gradient.
    """

    dimensions: Dimensions
    gpu: bool
    memory: int
    processes: int
    strategy: Strategy
    value: int
    checkpointing: Checkpointing
    attention: Attention
    longest_prompt: int
    longest_rationale: int
    longest_packed: int
    train_tokens: int | None
    score_tokens: int | None
    chunk: int
    engine: Literal["transformers", "vllm", "vllm_server"] | None
    engine_value: int
    vllm: VllmConfig
    batch_tokens: int
    copies: int
    kept_tokens: int = 0
    longest_kept_tokens: int = 0
    keep_forward: bool | None = False
    gradient_apart: bool = False

    @property
    def longest(self) -> int:
        """Longest prompt plus longest rationale, tokens."""
        return self.longest_prompt + self.longest_rationale

    @property
    def longest_row(self) -> int:
        """Longest row of a micro-batch; a row that is longer than a budget is a micro-batch by itself."""
        return max(self.longest, self.longest_packed)

    @property
    def shards(self) -> int:
        """Number of processes that share one copy of the model."""
        return self.processes if self.strategy == "fsdp2" else 1

    @property
    def most_train_tokens(self) -> int:
        """The largest budget of `auto`; more does not use a GPU better."""
        return max(_MOST_TRAIN, self.longest_row)

    @property
    def most_score_tokens(self) -> int:
        """The largest budget of `auto` without gradients."""
        return max(_MOST_SCORE, self.longest_row)

    def forward(self, tokens: int) -> Forward:
        """Return a micro-batch of so many tokens, or of the longest row."""
        width = min(max(tokens, self.longest), self.longest_row)
        return Forward(max(tokens, self.longest_row), width, self.value, self.attention, self.checkpointing)


def plan_settings(config: GraceConfig, dimensions: Dimensions, memory: int) -> PlanSettings:
    """Return the settings of a run for its plan.

    Args:
        config: The settings of the run.
        dimensions: Dimensions of its model.
        memory: Bytes of one device.
    """
    hardware, rollout = config.hardware, config.rollout
    gpu, bf16 = hardware.accelerator == "gpu", hardware.precision.startswith("bf16")
    writes = not config.method.prompt_only
    packed = hardware.packing and writes and rollout.group_size > 1
    engine_dtype = rollout.vllm.dtype
    low_engine = bf16 if engine_dtype == "auto" else engine_dtype == "bfloat16"
    return PlanSettings(
        dimensions=dimensions,
        gpu=gpu,
        memory=memory,
        processes=config.processes,
        strategy=hardware.strategy,
        value=2 if bf16 else FLOAT32,
        checkpointing=_checkpointing(config),
        attention=_attention(config) if packed else "causal",
        longest_prompt=config.prompt.max_tokens,
        longest_rationale=rollout.max_tokens if writes else 0,
        longest_packed=hardware.max_row_tokens if packed else 0,
        train_tokens=None if hardware.train_tokens == "auto" else hardware.train_tokens,
        score_tokens=None if hardware.score_tokens == "auto" else hardware.score_tokens,
        chunk=hardware.logprob_chunk_tokens,
        engine=rollout.engine if writes else None,
        engine_value=2 if low_engine else FLOAT32,
        vllm=replace(rollout.vllm, max_sequences=sequences_at_once(config)),
        batch_tokens=rollout.batch_tokens,
        copies=_copies(config, dimensions),
        kept_tokens=_kept_tokens(config, dimensions),
        longest_kept_tokens=_longest_kept_tokens(config),
        keep_forward=None if hardware.keep_forward == "auto" else hardware.keep_forward,
        gradient_apart=_gradient_apart(config),
    )


def _longest_kept_tokens(config: GraceConfig) -> int:
    if any(kept_forward_problems(config)):
        return 0
    rollout, negatives = config.rollout, max(config.data.negative_counts(), default=0)
    instances, prompt = math.ceil(config.job.batch_size / config.processes), config.prompt.max_tokens
    rationale = 0 if config.method.prompt_only else rollout.max_tokens
    if config.method.is_infonce:
        return instances * (2 + negatives) * (prompt + rationale)
    groups, k = (2 if rollout.policy_role == "both" else 1), rollout.group_size
    group = prompt + k * rationale if config.hardware.packing else k * (prompt + rationale)
    pathwise = config.objective.pathwise
    others = (2 - groups + negatives) if pathwise.weight > 0 and pathwise.anchors else 0
    return instances * (groups * group + others * (prompt + rationale))


def _attention(config: GraceConfig) -> Attention:
    return "flex" if config.hardware.packed_attention == "flex" else "mask"


def _checkpointing(config: GraceConfig) -> Checkpointing:
    # "selective" stores less than "off", which is planned with as the upper bound.
    return "full" if config.backbone.gradient_checkpointing == "full" else "off"


def _kept_tokens(config: GraceConfig, dimensions: Dimensions) -> int:
    if config.method.name != "grace" or any(kept_forward_problems(config)):
        return 0
    texts, pathwise = step_texts(config), config.objective.pathwise
    kept = texts.read(dimensions, logits=True).tokens
    if pathwise.weight > 0 and pathwise.anchors:
        kept += texts.read_others(dimensions).tokens
    return -(-kept // config.processes)


def _gradient_apart(config: GraceConfig) -> bool:
    objective = config.objective
    both = objective.pathwise.weight > 0 and objective.policy_gradient_weight > 0
    return config.method.name == "grace" and both and objective.pathwise.parts_every_n_steps is not None


def _copies(config: GraceConfig, dimensions: Dimensions) -> int:
    kind = config.reward.encoder.kind
    if config.method.is_infonce:
        return 0
    reference = needs_reference(config.objective) or kind == "frozen"
    of_reference = dimensions.parameters if reference and dimensions.lora is None else 0
    return of_reference + (dimensions.trained if kind == "ema" else 0)
