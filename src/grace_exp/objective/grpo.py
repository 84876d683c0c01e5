"""GRPO: clipped policy gradient with group-relative advantages.

    A_i   = r_i - mean of the group's r            / std of the group's r with advantage_scale=group_std
    loss  = - min(ratio_t A_i, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_i)    + coefficient x KL_t

Source: DeepSeekMath, arXiv 2402.03300 (group_std, sequence_mean, k3 in the loss). GRACE, arXiv 2510.04506,
minimises the token mean with centred advantages (METHOD, section 2): this is the preset `grpo`. The preset `grpo_std`
is the original.
"""

from grace_exp.objective.advantage import group_relative
from grace_exp.objective.loss_inputs import Algorithm
from grace_exp.objective.surrogate import clipped_loss

ALGORITHM = Algorithm(advantages=group_relative, loss=clipped_loss)
