"""How varied the rationales are: the entropy of tokens, and whether one rationale serves many texts."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from grace_exp.training.module import StepModule
from grace_exp.training.step.rollouts import Rollouts
from grace_exp.training.step.step_scores import StepScores


def variety_metrics(rollouts: Rollouts, scores: StepScores, module: StepModule) -> dict[str, float]:
    """Return `rollout/entropy` in nats per token, and with several instances `rollout/most_common_share`.

    Args:
        rollouts: Rollouts of this process.
        scores: Scores of the step.
        module: The module, which sums and gathers over processes.
    """
    group = rollouts.group
    nll, count = -scores.logprobs(group).sum(), sum(len(rollout.completion.token_ids) for rollout in group)
    total, tokens = module.sum(torch.stack([nll.double(), nll.new_tensor(count).double()])).tolist()
    metrics = {"rollout/entropy": total / max(tokens, 1.0)}
    keys = torch.tensor([rationale_key(rollout.completion.token_ids) for rollout in group], device=module.device)
    by_instance = module.gather(keys.view(len(rollouts.instances), -1))
    if len(by_instance) > 1:
        metrics["rollout/most_common_share"] = most_common_share(by_instance)
    return metrics


def rationale_key(token_ids: Sequence[int]) -> int:
    """Return a 63-bit number for a rationale that is the same on all processes."""
    digest = hashlib.blake2b(",".join(map(str, token_ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def most_common_share(keys: Tensor) -> float:
    """Return the share of the instances that have the most common rationale.

    Args:
        keys: A number for each instance's rationales from `rationale_key`, [instances, rationales].

    Returns:
        1 if one rationale was written for every text, 1 / instances if no two texts share one.
    """
    counts = Counter(key for row in keys.tolist() for key in set(row))
    return max(counts.values()) / len(keys)
