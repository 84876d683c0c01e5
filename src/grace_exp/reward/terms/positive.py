"""Rewards a rationale whose embedding is near its anchor's."""

from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def positive_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """Cosine of each rollout with its own anchor, mean over anchor samples (GRACE, arXiv 2510.04506).

    positive_i^k = sim(q_i, h_i^k)

    Args:
        inputs: Embeddings.
        config: Not read.

    Returns:
        `[groups, K]` in [-1, 1].
    """
    return inputs.rollouts_to_own_anchors_GKA.mean(dim=-1)
