"""Which engine a job starts, and how many rationales it decodes at once."""

from typing import Literal

from grace_exp.config.root import GraceConfig

_EVALUATED_AT_ONCE = 64
"""Lower bound while held-out texts are evaluated in training: a small batch must not make the evaluation slow."""


def engine_of(config: GraceConfig) -> Literal["transformers", "vllm", "vllm_server"]:
    """Return the engine of `rollout=`, or `transformers`, which then takes no resources, if the job writes none."""
    return config.rollout.engine if _writes(config) else "transformers"


def sequences_at_once(config: GraceConfig) -> int:
    """Return how many rationales the engine decodes at once: at most `rollout.vllm.max_sequences`.

    The `tensor_parallel` processes that share a vLLM engine send it requests together. All processes share one server.
    """
    vllm, most = config.rollout.vllm, _asked_by_a_process(config)
    if most is None:
        return vllm.max_sequences
    askers = config.processes if config.rollout.engine == "vllm_server" else vllm.tensor_parallel
    return min(vllm.max_sequences, askers * most)


def _asked_by_a_process(config: GraceConfig) -> int | None:
    """Return the most rationales that a process asks for in one call; None if that depends on the number of texts."""
    job, rollout = config.job, config.rollout
    encodes = job.name in ("embed", "distill", "fit_adaptive", "fit_center", "evaluate")
    if encodes and not (job.name == "evaluate" and config.evaluation.sets):
        return job.encode.batch_size * job.encode.samples
    if job.name != "train" or config.method.prompt_only:
        return None
    negatives = max(config.data.negative_counts())
    if config.method.is_infonce:  # one rationale for each text
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
