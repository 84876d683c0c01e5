"""Hours, bytes and limits of the same run, and of embedding whole corpora, on other numbers of GPUs.

Hours come from the plan's efficiencies, which are assumed. Figures that do not depend on the model were measured on a
CPU core (`benchmarks/scale.py`, docs/scale.md): reading, ids, cache, files, schedule, reward.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from grace_exp.config.root import GraceConfig
from grace_exp.rollout.vllm.memory import GIB
from grace_exp.training.plan.dimensions import Dimensions
from grace_exp.training.plan.run_plan import TOKEN_OVERHEAD, RunPlan, plan_run
from grace_exp.training.plan.step_work import forward_flops, step_texts

NODE = 8
"""GPUs per machine, if there are several machines."""
READ_SECONDS = 4.7e-6
"""Measured: seconds to read and check a row of a corpus; every worker reads all rows twice."""
ID_BYTES = 97
"""Measured: bytes of an id, which is kept to find duplicates."""
CACHE_SECONDS = 3.1e-4
"""Measured: seconds to write a rationale and an embedding into the cache's SQLite file, on a busy disk."""
FILE_SECONDS = 3.4e-5
"""Measured: seconds to write vectors, text and rationale of a row."""
REWARD_SECONDS = 5.9e-7
"""Measured: seconds of the reward per pair of groups, for K = 8 and hidden 1536; it grows with K and hidden."""
SCHEDULE_BYTES = 56
"""Measured: seconds of a draw while the schedule is made, in every process."""
_REWARD_K, _REWARD_HIDDEN = 8, 1536
_TEXT_BYTES = 400
"""Assumed: bytes of a text."""
_TOKEN_BYTES = 4.5
"""Assumed: bytes of text per token of a rationale."""


@dataclass(frozen=True, slots=True)
class TrainingScale:
    """One epoch of the triplets on `gpus` GPUs; each has as many instances a step as in the configured run.

    Attributes:
        gpus: Number of GPUs.
        batch: Instances per step.
        steps: Steps of the epoch.
        hours: Hours of the epoch, an estimate; None: it does not fit, or the device's speed is unknown.
        tokens: Tokens written.
        flops: FLOPs of the model.
        gather_mb: MB of embeddings that every process receives in a step.
        shares: Seconds of a step: `model`, from which the hours are computed (0 if unknown); and besides `gather` and
            `gradients` (a ring) at the assumed bandwidth between machines, and `reward` as measured on a CPU core.
        similarity_gib: The float64 cosines of every rationale and every anchor, which each process holds.
    """

    gpus: int
    batch: int
    steps: int
    hours: float | None
    tokens: float
    flops: float
    gather_mb: float
    shares: dict[str, float]
    similarity_gib: float


@dataclass(frozen=True, slots=True)
class CorpusScale:
    """`job=embed` of a corpus with one worker per GPU.

    Attributes:
        texts: Number of texts.
        gpus: Number of workers.
        hours: Hours, an estimate; None: the device's speed is unknown.
        tokens: Tokens read and written.
        flops: FLOPs of the model, including the forward that pools.
        output_gb: Size of vectors, texts and rationales.
        read_hours: Hours that every worker spends reading, before its first text and in parallel.
        reads_tb: Bytes of the input that all workers read together.
        ids_gib: Memory of the ids in every worker with `job.id_column`; 0 without.
        cache_hours: Hours that every worker spends on the cache.
        files: Number of output files with `job.shard_rows` = 100000.
    """

    texts: int
    gpus: int
    hours: float | None
    tokens: float
    flops: float
    output_gb: float
    read_hours: float
    reads_tb: float
    ids_gib: float
    cache_hours: float
    files: int


def training_scale(config: GraceConfig, dimensions: Dimensions, memory: int, device: str | None) -> list[TrainingScale]:
    """Return the configured run on each number of `job.plan.gpus`; arguments as in `plan_run`."""
    return list(_trainings(config, dimensions, memory, device))


def _trainings(config: GraceConfig, dimensions: Dimensions, memory: int, device: str | None) -> Iterator[TrainingScale]:
    assumed, roles = config.job.plan, 2 if config.rollout.policy_role == "both" else 1
    for gpus in assumed.gpus:
        scaled = _on(config, gpus)
        plan = plan_run(scaled, dimensions, memory, device=device)
        batch, k, hidden = scaled.job.batch_size, config.rollout.group_size, dimensions.shape.hidden
        steps = math.ceil(assumed.triplets / batch)
        texts = step_texts(scaled)
        gathered = 4 * hidden * (texts.trained + texts.anchors + texts.bare)
        bandwidth = assumed.network * 1e9 if gpus > NODE else math.inf  # inside a machine the exchange counts as free
        updates = batch // scaled.objective.mini_batch_size
        anchors = k if roles == 2 else 1
        pairs = batch * batch * roles
        size = k * anchors / _REWARD_K * hidden / _REWARD_HIDDEN
        work = plan.work.values()
        yield TrainingScale(
            gpus=gpus,
            batch=batch,
            steps=steps,
            hours=None if plan.hours is None else plan.hours / plan.steps * steps,
            tokens=float(steps * (texts.trained + texts.anchors) * texts.rationale),
            flops=float(steps) * sum(part.flops for part in work),
            gather_mb=gathered / 1e6,
            shares={
                "model": sum(plan.seconds.values()),
                "gather": gathered / bandwidth,
                "gradients": 2 * 4 * dimensions.trained * updates / bandwidth,
                "reward": REWARD_SECONDS * pairs * size,
            },
            similarity_gib=8 * pairs * k * anchors / GIB,
        )


def corpus_scale(config: GraceConfig, dimensions: Dimensions, plan: RunPlan) -> list[CorpusScale]:
    """Return `job.plan.corpus` on each number of `job.plan.gpus`, with the memory and speed of a device of `plan`."""
    assumed, shape = config.job.plan, dimensions.shape
    prompt = min(assumed.prompt_tokens, config.prompt.max_tokens)
    rationale = min(assumed.rationale_tokens, config.rollout.max_tokens)
    length = prompt + rationale
    forward = forward_flops(dimensions, length, length**2 / 2, 0)
    written = forward + forward_flops(dimensions, 0, 0, rationale)
    seconds = _seconds_of_a_text(config, dimensions, plan, rationale, length, forward)
    row = 4 * shape.hidden + 2 * (_TEXT_BYTES + _TOKEN_BYTES * rationale)  # texts are also in a JSONL file
    return [
        CorpusScale(
            texts=texts,
            gpus=gpus,
            hours=None if seconds is None else texts / gpus * seconds / 3600,
            tokens=float(texts * length),
            flops=texts * (forward + written),
            output_gb=texts * row / 1e9,
            read_hours=2 * texts * READ_SECONDS / 3600,
            reads_tb=2 * texts * _TEXT_BYTES * gpus / 1e12,
            ids_gib=texts * ID_BYTES / GIB if config.job.id_column is not None else 0.0,
            cache_hours=texts / gpus * CACHE_SECONDS / 3600,
            files=math.ceil(texts / 100_000),
        )
        for texts in assumed.corpus
        for gpus in assumed.gpus
    ]


def _seconds_of_a_text(
    config: GraceConfig, dimensions: Dimensions, plan: RunPlan, rationale: int, length: int, forward: float
) -> float | None:
    """Return the seconds of one busy GPU: it decodes as many texts as the cache holds, at most 256, and then pools."""
    if plan.speed is None:
        return None
    assumed, shape = config.job.plan, dimensions.shape
    cache_bytes = 2 * shape.layers * dimensions.key_width * 2 * length  # bf16
    weights = 2 * dimensions.parameters
    room = 0.85 * plan.memory.memory - weights - 4 * dimensions.parameters  # besides the weights that pool
    at_once = max(1, min(256, int(room / cache_bytes)))
    token = (weights + at_once * cache_bytes / 2) / (
        plan.speed.bandwidth * 1e9 * assumed.decode_efficiency
    ) + TOKEN_OVERHEAD
    return rationale * token / at_once + forward / (assumed.mfu * plan.speed.tflops * 1e12)


def _on(config: GraceConfig, gpus: int) -> GraceConfig:
    """Return the run on `gpus` GPUs, each with the configured number of instances a step and an update."""
    nodes, devices = (gpus // NODE, NODE) if gpus > NODE else (1, gpus)
    share, update = config.job.batch_size / config.processes, config.objective.mini_batch_size / config.processes
    strategy = config.hardware.strategy
    if gpus == 1:
        strategy = "auto"
    elif strategy == "auto":
        strategy = "ddp"
    mini_batch = max(1, round(update * gpus))
    mini_batch += -mini_batch % gpus
    batch = max(1, round(share * gpus))
    return replace(
        config,
        hardware=replace(config.hardware, devices=devices, nodes=nodes, strategy=strategy),
        job=replace(config.job, batch_size=batch + -batch % mini_batch),
        objective=replace(config.objective, mini_batch_size=mini_batch),
    )
