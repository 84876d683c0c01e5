"""The rationale's embedding near the query's."""

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def positive_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """Cosine of each rollout with its own query (GRACE, arXiv 2510.04506).

    Args:
        inputs: Embeddings.
        config: Nothing of it is read.

    Returns:
        `[groups, K]` in [-1, 1].
    """
    return torch.einsum("gkh,gh->gk", inputs.unit_rollouts, inputs.unit_queries)
