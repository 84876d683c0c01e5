"""REINFORCE++: advantages normalised over the whole batch instead of the group.

    reinforce_pp            A_i = (r_i - mean of the batch's r) / std of the batch's r
    reinforce_pp_baseline   A_i = a_i / std of the batch's a,      a_i = r_i - mean of the group's r
    loss                    - min(ratio_t A_i, clip(ratio_t) A_i), token mean

The source also subtracts the batch's mean of a, which is zero. advantage_scale=batch_std, which the presets set, is the
division. The source's KL is k1 in the reward for the first, and k2 in the loss for the second. The first subtracts
from each token's reward the cost of its later tokens. Here the whole rationale's cost is subtracted, which has the same
expectation.
Source: arXiv 2501.03262.
"""

from torch import Tensor

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.objective.advantage import group_centred, group_relative, scaled
from grace_exp.objective.loss_inputs import AdvantageInputs, Algorithm
from grace_exp.objective.surrogate import clipped_loss


def batch_relative(inputs: AdvantageInputs, config: ObjectiveConfig) -> Tensor:
    """Return rewards centred over the batch's kept and scaled by `advantage_scale`, `[groups, K]`."""
    everything = (inputs.rewards_GK.reshape(1, -1), inputs.kept_GK.reshape(1, -1))
    centred_GK = group_centred(*everything).view(inputs.rewards_GK.shape)
    return scaled(centred_GK, inputs.kept_GK, config.advantage_scale)


ALGORITHM = Algorithm(advantages=batch_relative, loss=clipped_loss)
GROUP_BASELINE = Algorithm(advantages=group_relative, loss=clipped_loss)
