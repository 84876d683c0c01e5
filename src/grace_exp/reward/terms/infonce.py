"""The rationale's embedding nearer to its query than to anything else."""

import torch
from torch import Tensor

from grace_exp.config.reward import InfoNceConfig
from grace_exp.reward.inputs import RewardInputs


def infonce_term(inputs: RewardInputs, config: InfoNceConfig) -> Tensor:
    """Log-probability of picking a rollout's own query among the batch's queries and the group's own negatives.

    InfoNCE (van den Oord et al., arXiv 1807.03748) as a reward. The candidates are compared with the rollout, not with
    the query, so negatives differ between the rollouts of a group and act on the advantage.

    Args:
        inputs: Embeddings.
        config: Temperature of the softmax over cosines.

    Returns:
        `[groups, K]` in nats, at most zero; zero with one group and no negatives, where nothing can be confused.
    """
    candidates = torch.cat([inputs.rollouts_to_queries, inputs.rollouts_to_negatives], dim=-1) / config.temperature
    own = torch.diagonal(candidates, dim1=0, dim2=2).T  # diagonal() puts the shared axis last: [K, groups] before .T
    return own - candidates.logsumexp(dim=-1)
