"""Dr. GRPO: GRPO without the two biased divisions, by the rationale's length and by the group's deviation.

    A_i   = r_i - mean of the group's r
    loss  = - min(ratio_t A_i, clip(ratio_t) A_i), summed over tokens, divided by rationales x a constant length

A mean over each rationale's tokens makes long wrong rationales cheap. Division by the group's deviation gives easy and
hard texts a higher weight. The code is GRPO's with aggregation=constant and advantage_scale=none, which the preset
sets.
Source: arXiv 2503.20783; the constant is the token limit of a rationale.
"""

from grace_exp.objective.advantage import group_relative
from grace_exp.objective.loss_inputs import Algorithm
from grace_exp.objective.surrogate import clipped_loss

ALGORITHM = Algorithm(advantages=group_relative, loss=clipped_loss)
