"""Which engine does a job start?"""

from typing import Literal

from grace_exp.config.root import GraceConfig

_EVALUATED_AT_ONCE = 64
"""Of a training run's held-out texts at least: a small batch should not make their evaluation slow."""


def engine_of(config: GraceConfig) -> Literal["transformers", "vllm", "vllm_server"]:
    """The engine of `rollout=`, or, where a job writes no rationale, `transformers`, which takes nothing then."""
    return config.rollout.engine if _writes(config) else "transformers"


def sequences_at_once(config: GraceConfig) -> int:
    """Rationales that an engine decodes at one time: `rollout.vllm.max_sequences`, or as many as it is asked for.

    A vLLM engine in process is asked by the `tensor_parallel` processes that share it, a server by all.
    """
    vllm, most = config.rollout.vllm, _asked_by_a_process(config)
    if most is None:
        return vllm.max_sequences
    askers = config.processes if config.rollout.engine == "vllm_server" else vllm.tensor_parallel
    return min(vllm.max_sequences, askers * most)


def _asked_by_a_process(config: GraceConfig) -> int | None:
    """Of one call, at most; None: as many as there are texts."""
    job, rollout = config.job, config.rollout
    encodes = job.name in ("embed", "distill", "fit_adaptive", "fit_center", "evaluate")
    if encodes and not (job.name == "evaluate" and config.evaluation.sets):
        return job.encode.batch_size * job.encode.samples
    if job.name != "train" or config.method.prompt_only:
        return None
    negatives = max(config.data.negative_counts())
    if config.method.is_infonce:  # one rationale of each text
        texts = config.objective.mini_batch_size // config.processes * (2 + negatives)
    else:
        trained = 2 if rollout.policy_role == "both" else 1
        greedy = trained if config.objective.algorithm == "remax" else 0
        each = trained * rollout.group_size + (2 - trained) + negatives + greedy
        texts = job.batch_size // config.processes * each
    return max(texts, _EVALUATED_AT_ONCE) if config.evaluation.sets else texts


def _writes(config: GraceConfig) -> bool:
    job, evaluation, method = config.job, config.evaluation, config.method
    of_method = job.encode.mode is None and job.model is None and method.prompt_only
    encodes_prompts = job.encode.mode == "prompt_only" or of_method
    match job.name:
        case "train":
            return bool(evaluation.sets) or not method.prompt_only
        case "evaluate":
            return bool(evaluation.sets) or (evaluation.benchmark is not None and not encodes_prompts)
        case "embed" | "distill":
            return not encodes_prompts
        case _:
            return True
