"""The plan of a run: memory by part, work by phase, hours, and changes that would make it fit."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from typing import Any

from grace_exp.config.backbone import LoraConfig
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.device_memory import DeviceMemory, device_memory
from grace_exp.training.plan.device_speed import Speed, device_speed
from grace_exp.training.plan.dimensions import Dimensions
from grace_exp.training.plan.plan_settings import PlanSettings, plan_settings
from grace_exp.training.plan.step_work import Work, step_work

TOKEN_OVERHEAD = 0.001
"""Seconds that vLLM takes per token besides reading memory: launches, sampling, scheduling."""
EAGER_LAYER = 0.001
"""Seconds of launches per layer and token in the transformers engine."""
_MOST_ADVICE = 3
_SMALL_CHUNK, _FEW_SEQUENCES = 256, 64


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will take.

    Attributes:
        settings: The settings on which memory depends.
        memory: Memory of one device.
        work: Work of one step by phase, over all processes.
        seconds: Seconds of one step by phase, an estimate; empty if the run does not fit or the device's speed is
            unknown.
        speed: Speed of one device; None: unknown.
        steps: Number of steps of the run.
        advice: Settings that make it fit; empty if it fits, or if no single change is enough.
    """

    settings: PlanSettings
    memory: DeviceMemory
    work: dict[str, Work]
    seconds: dict[str, float]
    speed: Speed | None
    steps: int
    advice: list[str]

    @property
    def hours(self) -> float | None:
        """Hours of all steps, without evaluations, start and checkpoints; an estimate."""
        return self.steps * sum(self.seconds.values()) / 3600 if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """Return the contents of `plan.json`, with bytes in GiB."""
        memory = self.memory
        return {
            "memory_gib": {
                phase: {name: size / GIB for name, size in parts.items()} | {"total": memory.total(phase) / GIB}
                for phase, parts in memory.phases.items()
            },
            "device_gib": memory.memory / GIB,
            "usable_gib": memory.usable / GIB,
            "fits": memory.fits,
            "problem": memory.problem,
            "advice": self.advice,
            "cached_sequences": memory.cached_sequences,
            "train_tokens": memory.train_tokens,
            "score_tokens": memory.score_tokens,
            "keep_forward": memory.keeps_forward,
            "step": {phase: asdict(work) for phase, work in self.work.items()},
            "estimated_seconds": self.seconds,
            "estimated_hours": self.hours,
            "speed": asdict(self.speed) if self.speed is not None else None,
        }


def plan_run(config: GraceConfig, dimensions: Dimensions, memory: int, *, device: str | None = None) -> RunPlan:
    """Return the plan of a run.

    Args:
        config: The settings of the run.
        dimensions: Dimensions of its model.
        memory: Bytes of one device.
        device: The device's name as CUDA reports it; None: the device is not in this machine.
    """
    settings = plan_settings(config, dimensions, memory)
    divided = device_memory(settings)
    config = replace(config, hardware=replace(config.hardware, keep_forward=divided.keeps_forward))
    speed = device_speed(config.hardware, memory / GIB, device)
    work = step_work(config, dimensions)
    seconds = _seconds(config, settings, divided, work, speed) if speed is not None and divided.fits else {}
    advice = [] if divided.fits else list(islice(_advice(settings), _MOST_ADVICE))
    return RunPlan(settings, divided, work, seconds, speed, config.job.steps, advice)


def with_planned_budgets(config: GraceConfig, plan: RunPlan) -> GraceConfig:
    """Return the configuration with the plan's numbers and decisions in place of `auto`."""
    hardware = config.hardware
    score, train = plan.memory.score_tokens, plan.memory.train_tokens
    if hardware.score_tokens != "auto":
        score = hardware.score_tokens
    if hardware.train_tokens != "auto":
        train = hardware.train_tokens
    keep = plan.memory.keeps_forward if hardware.keep_forward == "auto" else hardware.keep_forward
    chosen = replace(hardware, score_tokens=score, train_tokens=train, keep_forward=keep)
    return replace(config, hardware=chosen)


def planned_memory(config: GraceConfig, found: int | None) -> int:
    """Return the bytes of one device: the configured ones, but at most those found.

    Args:
        config: The settings of the run.
        found: Bytes that the device has; None: the device is not in this machine.

    Raises:
        ConfigError: Neither is known.
    """
    wanted = config.hardware.memory_gib
    if wanted is None and found is None:
        raise ConfigError(
            "hardware.memory_gib is null, and there is no GPU here to ask: give the memory of one device, e.g. "
            "hardware.memory_gib=80"
        )
    sizes = [found, None if wanted is None else int(wanted * GIB)]
    return min(size for size in sizes if size is not None)


def _seconds(
    config: GraceConfig, settings: PlanSettings, memory: DeviceMemory, work: dict[str, Work], speed: Speed
) -> dict[str, float]:
    rate = config.job.plan.mfu * speed.tflops * 1e12 * settings.processes
    seconds = {phase: done.flops / rate for phase, done in work.items() if phase != "rollout"}
    if settings.checkpointing == "full":
        # A second forward besides the forward and the backward.
        passes = 3 if settings.dimensions.lora is None else 2
        seconds["update"] *= (passes + 1) / passes
    if "rollout" in work:
        seconds["rollout"] = _decoding_seconds(config, settings, memory, work["rollout"], speed)
    return {phase: seconds[phase] for phase in work}


def _decoding_seconds(
    config: GraceConfig, settings: PlanSettings, memory: DeviceMemory, work: Work, speed: Speed
) -> float:
    """Return the seconds of one process, which waits for its longest rationale; of hundreds, one reaches the limit."""
    shape, sequences = settings.dimensions.shape, math.ceil(work.sequences / settings.processes)
    if settings.engine == "transformers":
        at_once = max(1, settings.batch_tokens // settings.longest)
        return math.ceil(sequences / at_once) * settings.longest_rationale * shape.layers * EAGER_LAYER
    at_once = min(sequences, settings.vllm.max_sequences)
    if memory.cached_sequences is not None:  # sequences of mean length share the room of the full ones
        mean = work.tokens / work.sequences
        at_once = max(1, min(at_once, int(memory.cached_sequences * settings.longest / mean)))
    rounds = math.ceil(sequences / at_once)
    weights = settings.dimensions.parameters * settings.engine_value
    tokens = work.tokens / settings.processes / rounds / 2  # tokens in the cache, averaged over a round
    cache = tokens * 2 * shape.layers * settings.dimensions.key_width * settings.engine_value
    bandwidth = speed.bandwidth * 1e9 * config.job.plan.decode_efficiency
    token = (weights + cache) / settings.vllm.tensor_parallel / bandwidth + TOKEN_OVERHEAD
    return rounds * settings.longest_rationale * token


def _advice(settings: PlanSettings) -> Iterator[str]:
    """Yield changes that make the run fit, small sets first; no set contains another one."""
    changes, found = _changes(settings), list[set[str]]()
    for count in range(1, len(changes) + 1):
        for chosen in combinations(changes, count):
            if any(known <= set(chosen) for known in found):
                continue
            variant = settings
            for name in chosen:
                variant = changes[name](variant)
            if device_memory(variant).fits:
                found.append(set(chosen))
                yield " ".join(chosen)


def _changes(settings: PlanSettings) -> dict[str, Callable[[PlanSettings], PlanSettings]]:
    """Return single changes by their text on the command line, harmless ones first."""
    changes: dict[str, Callable[[PlanSettings], PlanSettings]] = {}
    if settings.checkpointing != "full":
        changes["backbone.gradient_checkpointing=full"] = lambda run: replace(run, checkpointing="full")
    if settings.train_tokens is not None:
        changes["hardware.train_tokens=auto"] = lambda run: replace(run, train_tokens=None)
    if settings.chunk > _SMALL_CHUNK:
        smaller = f"hardware.logprob_chunk_tokens={_SMALL_CHUNK}"
        changes[smaller] = lambda run: replace(run, chunk=_SMALL_CHUNK)
    if settings.engine == "vllm" and settings.vllm.max_sequences > _FEW_SEQUENCES:
        fewer = replace(settings.vllm, max_sequences=_FEW_SEQUENCES)
        changes[f"rollout.vllm.max_sequences={_FEW_SEQUENCES}"] = lambda run: replace(run, vllm=fewer)
    if settings.processes > 1 and settings.strategy != "fsdp2":
        changes["hardware.strategy=fsdp2"] = lambda run: replace(run, strategy="fsdp2")
    if settings.engine == "vllm":
        server = "rollout=vllm_server rollout.vllm.server.url=http://HOST:8000"
        changes[server] = lambda run: replace(run, engine="vllm_server")
    if settings.dimensions.lora is None:
        lora = replace(settings.dimensions, lora=LoraConfig(rank=16, alpha=32))
        adapters = "'backbone.lora={rank: 16, alpha: 32}' optim=lora"
        changes[adapters] = lambda run: replace(run, dimensions=lora, copies=0)
    return changes
