"""GSPO: one ratio for a whole rationale, the geometric mean of its tokens' ratios.

    s_i   = exp(mean over t of log ratio_t)
    A_i   = (r_i - mean of the group's r) / std of the group's r
    loss  = - min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), mean over rationales

Every token has its rationale's loss, so aggregation=sequence_mean, which the preset sets, gives the mean over
rationales. A mean over many tokens varies little, so the paper's clip range is [1 - 3e-4, 1 + 4e-4].
Source: arXiv 2507.18071, equations 5 to 7.
"""

from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.advantage import group_relative
from grace_exp.objective.importance import row_sums
from grace_exp.objective.kl import bounded_log_ratio
from grace_exp.objective.loss_inputs import Algorithm, LossInputs
from grace_exp.objective.surrogate import clipped, counted


def sequence_ratio_loss(inputs: LossInputs, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clipped surrogate of the sequence ratio.

    Args:
        inputs: One micro-batch.
        config: The clip range, and what every loss adds.

    Returns:
        Summed loss and metrics, as in `surrogate.summed_loss`; `ratio` is s_i, counted once a token.
    """
    tokens = counted(inputs)
    lengths_N = inputs.counted_NT.sum(dim=1).clamp(min=1)
    means_N = row_sums(tokens.logprobs - tokens.old, tokens.rows, len(lengths_N)) / lengths_N
    ratio = bounded_log_ratio(means_N, means_N.new_zeros(())).exp()[tokens.rows]
    return clipped(tokens, ratio, inputs, config)


ALGORITHM = Algorithm(advantages=group_relative, loss=sequence_ratio_loss)
