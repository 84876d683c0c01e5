"""The query's embedding far from its negatives'."""

import torch
from torch import Tensor

from grace_exp.config.reward import TermConfig
from grace_exp.reward.inputs import RewardInputs


def negative_term(inputs: RewardInputs, config: TermConfig) -> Tensor:
    """Minus the sum of the query's cosines with its own negatives (GRACE, arXiv 2510.04506).

    It is the same for every rollout of a group, so it moves rewards and, untruncated, no advantage.

    Args:
        inputs: Embeddings.
        config: Nothing of it is read.

    Returns:
        `[groups, K]` in [-M, M]; zero without negatives.
    """
    similarity = torch.einsum("gmh,gh->g", inputs.unit_negatives, inputs.unit_queries)
    return -similarity[:, None].expand(inputs.truncated.shape)
