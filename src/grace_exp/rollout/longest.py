"""The longest sequence of a run."""

from grace_exp.config.root import GraceConfig
from grace_exp.policy.model_checks import Longest


def longest_tokens(config: GraceConfig) -> Longest:
    """Return the longest prompt plus the longest rationale that the run can ask for.

    If the method writes no rationales and measures none, only prompts count.
    """
    prompt = config.prompt.max_tokens
    if config.job.name == "train" and config.method.prompt_only and not config.evaluation.sets:
        return Longest(prompt, f"prompt.max_tokens={prompt}")
    tokens = max(config.rollout.max_tokens, config.evaluation.max_tokens or 0, config.job.encode.max_tokens or 0)
    return Longest(
        prompt + tokens,
        f"prompt.max_tokens={prompt} + {tokens} rationale tokens (rollout.max_tokens, evaluation.max_tokens, "
        "job.encode.max_tokens)",
    )
