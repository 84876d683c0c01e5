"""Which engine does a job start?"""

from typing import Literal

from grace_exp.config.root import GraceConfig


def engine_of(config: GraceConfig) -> Literal["transformers", "vllm", "vllm_server"]:
    """The engine of `rollout=`, or, where a job writes no rationale, `transformers`, which takes nothing then."""
    return config.rollout.engine if _writes(config) else "transformers"


def _writes(config: GraceConfig) -> bool:
    job, evaluation, method = config.job, config.evaluation, config.method
    of_method = job.encode.mode is None and job.model is None and method.prompt_only
    encodes_prompts = job.encode.mode == "prompt_only" or of_method
    match job.name:
        case "train":
            return bool(evaluation.sets) or not method.prompt_only
        case "evaluate":
            return bool(evaluation.sets) or (evaluation.benchmark is not None and not encodes_prompts)
        case "embed":
            return not encodes_prompts
        case _:
            return True
